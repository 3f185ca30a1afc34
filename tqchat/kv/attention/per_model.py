"""What is found out about a model once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Found = TypeVar("Found")


class PerModel(Generic[Found]):
    """Results by model, for as long as it lives; a model itself cannot be hashed."""

    def __init__(self) -> None:
        self._results: dict[int, tuple[weakref.ref[Any], Found]] = {}

    def get(self, model: Any, find_out: Callable[[], Found]) -> Found:
        """The result for ``model``, from ``find_out`` the first time."""
        number = id(model)
        known = self._results.get(number)
        if known is None or known[0]() is not model:
            reference = weakref.ref(model, lambda _: self._results.pop(number, None))
            known = self._results[number] = reference, find_out()
        return known[1]
