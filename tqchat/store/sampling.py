"""A conversation's sampling settings: names, allowed values, storage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

from tqchat.store.errors import StoreError

MAX_TOKENS = 1_000_000

# The same limits as settings/schema.py; tests/store/test_sampling.py compares the two.
_INTEGER_RANGES = {"max_tokens": (1, MAX_TOKENS), "top_k": (0, 1_000_000), "seed": (0, 2**63 - 1)}
_RANGES = {
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.0, 10.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 0.5),
}
_POSITIVE = ("top_p", "repetition_penalty")


class BadSampling(StoreError):
    """An unknown sampling setting, or a value out of range."""

    exit_code = 2


@dataclass(frozen=True)
class SamplingChoice:
    """A conversation's sampling settings; ``None`` uses the value from the user's settings.

    Raises:
        BadSampling: if a value is out of range.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.given.items():
            if (allowed := violation(name, value)) is not None:
                raise BadSampling(f"The sampling setting {name} is {value!r}, but must be {allowed}.")

    @property
    def given(self) -> dict[str, int | float]:
        """The values that are set: ``replace(settings.sampling, **choice.given)``."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


def violation(name: str, value: object) -> str | None:
    """The allowed values if ``value`` is not one of them; completes the sentence "it must be ..."."""
    if name in _INTEGER_RANGES:
        least, most = _INTEGER_RANGES[name]
        fits = type(value) is int and least <= value <= most
        return None if fits else f"a whole number from {least} to {most}"
    (minimum, maximum), above = _RANGES[name], name in _POSITIVE
    # NaN fails every comparison, so it is rejected too.
    fits = isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value <= maximum
    words = f"above 0 and at most {maximum:g}" if above else f"from {minimum:g} to {maximum:g}"
    return None if fits and not (above and value == 0) else f"a number {words}"


def parse(values: Mapping[str, object]) -> SamplingChoice:
    """Build a SamplingChoice from names and values.

    Raises:
        BadSampling: if a name is unknown or a value out of range.
    """
    known = [f.name for f in fields(SamplingChoice)]
    for name, value in values.items():
        if name not in known:
            raise BadSampling(f"There is no sampling setting {name!r}; the settings are {', '.join(known)}.")
        if value is not None and (allowed := violation(name, value)) is not None:
            raise BadSampling(f"The sampling setting {name} is {value!r}, but must be {allowed}.")
    return SamplingChoice(**values)  # type: ignore[arg-type]  # each value was just checked


def to_column(choice: SamplingChoice) -> str | None:
    """The JSON text of the ``sampling`` column, ``None`` if nothing is set."""
    return json.dumps(choice.given, sort_keys=True) if choice.given else None


def from_column(text: str | None) -> SamplingChoice:
    """Parse the ``sampling`` column. A damaged value counts as empty, so that the conversation opens."""
    try:
        return parse(json.loads(text)) if text else SamplingChoice()
    except (ValueError, TypeError, AttributeError, RecursionError, BadSampling):
        return SamplingChoice()
