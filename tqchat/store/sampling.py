"""A conversation's own sampling settings: which there are, what each may be, and how they are stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

from tqchat.store.errors import StoreError

MOST_TOKENS = 1_000_000

# The same limits as in config.toml; tests/store/test_sampling.py holds the two against each other.
_WHOLE = {"max_tokens": (1, MOST_TOKENS), "top_k": (0, 1_000_000), "seed": (0, 2**63 - 1)}
_NUMBER = {"temperature": 5.0, "top_p": 1.0, "min_p": 1.0, "repetition_penalty": 10.0}
_ABOVE_ZERO = ("top_p", "repetition_penalty")


class BadSampling(StoreError):
    """A sampling setting has no such name, or may not have this value."""

    exit_code = 2


@dataclass(frozen=True)
class SamplingChoice:
    """What a conversation decides about how replies are drawn; ``None`` leaves it to the user's settings.

    Raises:
        BadSampling: if a value is out of its range.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.given.items():
            if (wanted := allowed(name, value)) is not None:
                raise BadSampling(f"The sampling setting {name} is {value!r}, but must be {wanted}.")

    @property
    def given(self) -> dict[str, int | float]:
        """Only what is decided here: ``replace(settings.sampling, **choice.given)``."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


def allowed(name: str, value: object) -> str | None:
    """What a setting may be, if this value is not: completes the sentence "it must be ..."."""
    if name in _WHOLE:
        least, most = _WHOLE[name]
        fits = type(value) is int and least <= value <= most
        return None if fits else f"a whole number from {least} to {most}"
    limit, above = _NUMBER[name], name in _ABOVE_ZERO
    # NaN fails every comparison, so it is refused as well.
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= limit
    words = f"above 0 and at most {limit:g}" if above else f"from 0 to {limit:g}"
    return None if fits and not (above and value == 0) else f"a number {words}"


def parse(values: Mapping[str, object]) -> SamplingChoice:
    """The choice that these names and values make.

    Raises:
        BadSampling: if a name is unknown or a value out of its range.
    """
    known = [f.name for f in fields(SamplingChoice)]
    for name, value in values.items():
        if name not in known:
            raise BadSampling(f"There is no sampling setting {name!r}; there are {', '.join(known)}.")
        if value is not None and (wanted := allowed(name, value)) is not None:
            raise BadSampling(f"The sampling setting {name} is {value!r}, but must be {wanted}.")
    return SamplingChoice(**values)  # type: ignore[arg-type]  # each value was just checked


def to_column(choice: SamplingChoice) -> str | None:
    """How the database keeps it."""
    return json.dumps(choice.given, sort_keys=True) if choice.given else None


def from_column(text: str | None) -> SamplingChoice:
    """What the database kept. A damaged column counts as empty: the conversation must open all the same."""
    try:
        return parse(json.loads(text)) if text else SamplingChoice()
    except (ValueError, TypeError, AttributeError, RecursionError, BadSampling):
        return SamplingChoice()
