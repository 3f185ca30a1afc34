"""The rounding that tokens carry from earlier schemes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

UNROUNDED_BITS = 16


@dataclass(frozen=True)
class Rounding:
    """The fewest bits at which the tokens of one side were stored under earlier schemes.

    Attributes:
        runs: ``(end, bits)`` in order: tokens at positions before ``end``, from the end of the run before on.
            Later tokens were never packed under another scheme.
    """

    runs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def _of(cls, spans: Iterable[tuple[int, int, int]]) -> Self:
        runs: list[tuple[int, int]] = []
        for _, end, bits in spans:
            if runs and runs[-1][1] == bits:
                runs.pop()
            runs.append((end, bits))
        if runs and runs[-1][1] == UNROUNDED_BITS:
            runs.pop()
        return cls(tuple(runs))

    def spans(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """``(start, end, bits)`` of the runs in a range of positions, without gaps."""
        for stop, bits in (*self.runs, (end, UNROUNDED_BITS)):
            stop = min(stop, end)
            if start < stop:
                yield start, stop, bits
                start = stop

    def before(self, end: int) -> Self:
        """Of the tokens before ``end``."""
        return self._of(self.spans(0, end)) if self.runs else self

    def then(self, start: int, later: Rounding) -> Self:
        """This one up to ``start``, ``later`` from there on."""
        return self._of([*self.spans(0, start), *later.spans(start, max(start, later._end))])

    def lowered(self, start: int, end: int, bits: int) -> Self:
        """With tokens ``[start, end)`` stored at ``bits`` bits as well."""
        lowered = ((low, high, min(bits, held)) for low, high, held in self.spans(start, end))
        return self._of([*self.spans(0, start), *lowered, *self.spans(end, max(end, self._end))])

    def at_most(self, bits: int) -> Self:
        """Without the tokens that were stored at more than ``bits`` bits: a format of so many is coarser."""
        spans = self.spans(0, self._end)
        return self._of((low, high, held if held <= bits else UNROUNDED_BITS) for low, high, held in spans)

    @property
    def tokens(self) -> int:
        """Number of tokens that carry any."""
        return sum(high - low for low, high, bits in self.spans(0, self._end) if bits < UNROUNDED_BITS)

    @property
    def fewest(self) -> int:
        """The fewest bits of any token."""
        return min((bits for _, bits in self.runs), default=UNROUNDED_BITS)

    @property
    def _end(self) -> int:
        return self.runs[-1][0] if self.runs else 0

    @classmethod
    def from_json(cls, runs: Any) -> Self:
        """From a list of ``[end, bits]``.

        Raises:
            ValueError: if it is not one.
        """
        checked = tuple((end, bits) for end, bits in runs)
        if any(type(number) is not int for run in checked for number in run):
            raise ValueError("These are no runs of rounded tokens.")
        ends = [0, *(end for end, _ in checked)]
        if ends != sorted(set(ends)) or any(not 0 < bits <= UNROUNDED_BITS for _, bits in checked):
            raise ValueError("These are no runs of rounded tokens.")
        return cls(checked)


NO_ROUNDING = Rounding()
