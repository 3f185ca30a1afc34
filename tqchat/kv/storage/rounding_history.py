"""The rounding that tokens carry from earlier schemes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

UNROUNDED_BITS = 16


class Span(NamedTuple):
    """Tokens at positions ``[start, end)`` that carry the same rounding.

    Attributes:
        bits: The fewest bits at which they were stored under earlier schemes.
        times: How often they were rounded under those.
    """

    start: int
    end: int
    bits: int = UNROUNDED_BITS
    times: int = 0


@dataclass(frozen=True)
class Rounding:
    """What the tokens of one side carry from earlier schemes.

    Attributes:
        runs: ``(end, bits, times)`` in order: tokens at positions before ``end``, from the end of the run
            before on; see ``Span``. Later tokens were never packed under another scheme.
    """

    runs: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def _of(cls, spans: Iterable[Span]) -> Self:
        runs: list[tuple[int, int, int]] = []
        for _, *run in spans:
            end, bits, times = run
            if runs and runs[-1][1:] == (bits, times):
                runs.pop()
            runs.append((end, bits, times))
        if runs and runs[-1][1] == UNROUNDED_BITS:
            runs.pop()
        return cls(tuple(runs))

    def spans(self, start: int, end: int) -> Iterator[Span]:
        """The runs in a range of positions, without gaps."""
        for stop, bits, times in (*self.runs, (end, UNROUNDED_BITS, 0)):
            stop = min(stop, end)
            if start < stop:
                yield Span(start, stop, bits, times)
                start = stop

    def before(self, end: int) -> Self:
        """The history of the tokens before ``end``."""
        return self._of(self.spans(0, end)) if self.runs else self

    def then(self, start: int, later: Rounding) -> Self:
        """This one up to ``start``, ``later`` from there on."""
        return self._of([*self.spans(0, start), *later.spans(start, max(start, later._end))])

    def lowered(self, start: int, end: int, bits: int) -> Self:
        """With tokens ``[start, end)`` rounded to ``bits`` bits as well."""
        if bits >= UNROUNDED_BITS:
            return self
        lowered = (
            span._replace(bits=min(bits, span.bits), times=span.times + 1) for span in self.spans(start, end)
        )
        return self._of([*self.spans(0, start), *lowered, *self.spans(end, max(end, self._end))])

    def at_most(self, bits: int) -> Self:
        """Without the tokens that were stored at more than ``bits`` bits: a format of so many is coarser."""
        spans = self.spans(0, self._end)
        return self._of(span if span.bits <= bits else Span(span.start, span.end) for span in spans)

    @property
    def tokens(self) -> int:
        """Number of tokens that carry any."""
        spans = self.spans(0, self._end)
        return sum(span.end - span.start for span in spans if span.bits < UNROUNDED_BITS)

    @property
    def fewest(self) -> int:
        """The fewest bits of any token."""
        return min((bits for _, bits, _ in self.runs), default=UNROUNDED_BITS)

    @property
    def times(self) -> int:
        """The largest number of roundings of any token."""
        return max((times for _, _, times in self.runs), default=0)

    @property
    def _end(self) -> int:
        return self.runs[-1][0] if self.runs else 0

    @classmethod
    def from_json(cls, runs: Any) -> Self:
        """From a list of ``[end, bits, times]``; caches of older versions have no ``times``.

        Raises:
            ValueError: if it is not one.
        """
        checked = []
        for run in runs:
            end, bits, times = (*run, 1) if len(run) == 2 else run
            if any(type(number) is not int for number in (end, bits, times)):
                raise ValueError("These are no runs of rounded tokens.")
            checked.append((end, bits, times))
        ends = [0, *(end for end, _, _ in checked)]
        if ends != sorted(set(ends)) or any(
            not 0 < bits <= UNROUNDED_BITS or times < 0 for _, bits, times in checked
        ):
            raise ValueError("These are no runs of rounded tokens.")
        return cls(tuple(checked))


NO_ROUNDING = Rounding()
