"""A model's own sampling values, and what each setting does to a reply."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.engine.talk import send, user
from tqchat.engine.commands import Sampling, resolve_sampling
from tqchat.engine.decoding.sampling import TokenSampler
from tqchat.engine.models import LoadedModel
from tqchat.engine.models.sampling_defaults import sampling_defaults
from tqchat.engine.models.token_arrays import token_ids
from tqchat.engine.session import Session
from tqchat.paths import bundled

ASKED = [user("Tell me a story about a dog.")]
DRAWN = Sampling(temperature=1.0, max_tokens=24, seed=7)


@pytest.mark.parametrize(
    ("told", "name", "value", "ignored"),
    [
        ({"min_p": 1.5}, "min_p", None, True),
        ({"min_p": -0.1}, "min_p", None, True),
        ({"min_p": 0.1}, "min_p", 0.1, False),
        ({"top_p": 0}, "top_p", 0.95, True),
        ({"top_p": 1.5}, "top_p", 0.95, True),
        ({"top_k": -1}, "top_k", 0, False),
        ({"top_k": 1e9}, "top_k", 0, False),
        ({"top_k": 20.0}, "top_k", 20, False),
        ({"top_k": float("nan")}, "top_k", None, True),
        ({"repetition_penalty": -1.0}, "repetition_penalty", None, True),
        ({"repetition_penalty": 1e6}, "repetition_penalty", None, True),
        ({"temperature": -1.0}, "temperature", 0.7, True),
        ({"temperature": "0.6"}, "temperature", 0.7, True),
        ({"temperature": 10**400}, "temperature", 0.7, True),
        ({"temperature": float("nan")}, "temperature", 0.7, True),
        ({"temperature": None, "top_p": None}, "temperature", 0.7, False),
        ({"temperature": 0.6, "do_sample": False}, "temperature", 0.0, False),
        ({"presence_penalty": 1.5}, "presence_penalty", 1.5, False),
    ],
)
def test_values_that_cannot_be_used_are_ignored(
    tmp_path: Path, told: dict[str, Any], name: str, value: float | None, ignored: bool
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(told))
    sampling, sentence = sampling_defaults(tmp_path)
    assert getattr(sampling, name) == value
    assert (sentence is not None) == ignored
    if sentence is not None:
        assert name in sentence and tmp_path.name in sentence and "must be" in sentence


@pytest.mark.parametrize("content", ["{broken", "[]"])
def test_a_file_that_cannot_be_read_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    sampling, sentence = sampling_defaults(tmp_path)
    assert (sampling.temperature, sampling.top_p) == (0.7, 0.95)
    assert sentence is not None and "cannot be read" in sentence


def test_a_model_without_the_file_has_our_values(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == (Sampling(temperature=0.7, top_p=0.95), None)


def test_seeds_repeat_a_reply(tiny: LoadedModel) -> None:
    for changes in ({}, {"xtc_probability": 0.5}, {"top_k": 5, "min_p": 0.01, "presence_penalty": 1.0}):
        sampling = replace(DRAWN, **changes)  # type: ignore[arg-type]
        first, second = (send(Session(tiny), ASKED, sampling).text for _ in range(2))
        assert first == second
    assert send(Session(tiny), ASKED, replace(DRAWN, seed=8)).text != first


@pytest.mark.parametrize("name", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_penalties_make_what_was_said_less_likely(tiny: LoadedModel, name: str) -> None:
    greedy = Sampling(temperature=0.0, max_tokens=40)
    plain = send(Session(tiny), ASKED, greedy)
    session = Session(tiny)
    punished = replace(greedy, **{name: 2.0})  # type: ignore[arg-type]
    varied = send(session, ASKED, punished)
    assert varied.text != plain.text
    again = send(session, ASKED, punished)
    assert again.counts.prefilled == 1
    assert again.text == varied.text, "what a cache held already changes no penalty"


def test_xtc_leaves_out_the_likeliest(starter: LoadedModel) -> None:
    sampling = replace(DRAWN, temperature=0.2, xtc_probability=1.0, xtc_threshold=0.05)
    plain = replace(sampling, xtc_probability=0.0)
    assert send(Session(starter), ASKED, sampling).text != send(Session(starter), ASKED, plain).text


def test_what_is_left_open_comes_from_the_model() -> None:
    defaults = Sampling(temperature=0.5, top_k=3, presence_penalty=1.0, xtc_probability=0.1)
    chosen = resolve_sampling(Sampling(top_k=9, max_tokens=5, seed=1), defaults)
    assert chosen == replace(defaults, top_k=9, max_tokens=5, seed=1)
    assert resolve_sampling(Sampling(temperature=0.0), defaults) == Sampling(temperature=0.0)


def test_a_model_that_is_greedy_by_itself_keeps_its_penalties() -> None:
    defaults = Sampling(temperature=0.0, top_p=0.9, repetition_penalty=1.1)
    assert resolve_sampling(Sampling(), defaults) == Sampling(temperature=0.0, repetition_penalty=1.1)
    assert resolve_sampling(Sampling(repetition_penalty=1.0), defaults).repetition_penalty == 1.0
    assert resolve_sampling(Sampling(temperature=0.0), defaults) == Sampling(temperature=0.0)
    assert resolve_sampling(Sampling(temperature=0.5), defaults).repetition_penalty == 1.1
    defaults, problem = sampling_defaults(bundled("starter"))
    assert problem is None and resolve_sampling(Sampling(), defaults).repetition_penalty == 1.1


def test_a_proposal_is_accepted_as_often_as_it_would_be_sampled() -> None:
    """Rows are sampled by the exact rule: each follows its own distribution, whatever was proposed."""
    wanted = [[0.6, 0.3, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]]
    logits = mx.log(mx.array(wanted) + 1e-9)
    runs = 600
    seen = [[0] * 4, [0] * 4]
    for seed in range(runs):
        sampler = TokenSampler(Sampling(temperature=1.0, seed=seed), 4)
        rows = token_ids(sampler.sample_rows(logits, 3, [1, 2], [0]))
        alone = TokenSampler(Sampling(temperature=1.0, seed=seed), 4)
        assert rows[0] == token_ids(alone.sample(logits[:1], 3, [1, 2]))[0]
        assert rows[1] == token_ids(alone.sample(logits[1:], 4, [1, 2, 0]))[0]
        seen[0][rows[0]] += 1
        if rows[0] == 0:  # the proposal was accepted
            seen[1][rows[1]] += 1
    for counts, shares in zip(seen, wanted, strict=True):
        total = sum(counts)
        expected = [max(total * share, 1e-9) for share in shares]
        chi_squared = sum((n - m) ** 2 / m for n, m in zip(counts, expected, strict=True) if m > 1)
        assert total >= 300 and chi_squared < 16.3, counts  # 0.1 % of correct samplers exceed it


def test_penalties_see_what_was_proposed_before_each_row() -> None:
    sampler = TokenSampler(Sampling(temperature=0.0, repetition_penalty=2.0), 4)
    logits = mx.array([[1.0, 0.9, 0.8, 0.1]] * 3)
    assert token_ids(sampler.sample_rows(logits, 0, [3], [0, 1])) == [0, 1, 2]
