from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from tqchat import settings
from tqchat.engine.commands import Sampling
from tqchat.store import sampling
from tqchat.store.sampling import BadSampling, SamplingChoice, parse

VALUES: list[Any] = [
    *(True, "1", None, [], float("nan"), float("inf"), -1, -0.1, 0, 0.0, 1e-9, 0.5, 1, 1.0, 1.1, 2.5),
    *(5, 5.1, 10, 10.5, 1_000_000, 1_000_001, 2**63 - 1, 2**63),
]


@pytest.mark.parametrize("name", [field.name for field in fields(SamplingChoice)])
def test_limits_equal_those_of_the_settings(name: str) -> None:
    for value in VALUES:
        assert (sampling.violation(name, value) is None) == (settings.violation(name, value) is None), value
        assert sampling.violation(name, value) == settings.violation(name, value)


def test_a_choice_has_every_sampling_field() -> None:
    assert {field.name for field in fields(SamplingChoice)} == {field.name for field in fields(Sampling)}
    choice = SamplingChoice(temperature=0.0, max_tokens=7)
    changed = replace(Sampling(top_p=0.5), **choice.given)  # type: ignore[arg-type]
    assert changed == Sampling(temperature=0.0, top_p=0.5, max_tokens=7)


def test_invalid_settings_are_named() -> None:
    with pytest.raises(BadSampling, match=r"top_p is 2, but must be a number above 0 and at most 1"):
        SamplingChoice(top_p=2)
    with pytest.raises(BadSampling, match=r"no sampling setting 'heat'.*temperature"):
        parse({"heat": 1})
    assert parse({"seed": None, "top_k": 3}) == SamplingChoice(top_k=3)
