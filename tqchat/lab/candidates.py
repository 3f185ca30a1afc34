"""The caches that can be measured: every scheme, and mlx-lm's own quantised caches for comparison."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqchat.errors import TqchatError
from tqchat.kv.scheme import FP16, SCHEMES, Scheme, UnknownScheme, parse_scheme


class UnknownCandidate(TqchatError):
    """The name is neither a scheme nor one of mlx-lm's caches."""

    exit_code = 2


@dataclass(frozen=True)
class Candidate:
    """A kind of cache: one of our schemes, mlx-lm's ``QuantizedKVCache`` at ``mlx_bits``, or a contestant.

    For the others, ``scheme`` is the one that the prompt is read under before the cache is converted.
    """

    name: str
    scheme: Scheme
    mlx_bits: int | None = None
    contestant: str | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is one of our schemes."""
        return self.mlx_bits is None and self.contestant is None


class CannotTakePart(Exception):
    """A cache that is not ours cannot hold this model's vectors, or does not run on this machine."""


@contextmanager
def may_drop_out(candidate: Candidate) -> Iterator[None]:
    """Raise errors of a cache that is not ours as ``CannotTakePart``; those of ours are bugs and stay.

    MLX lacks some operations on some devices: quantised attention on CUDA is one.

    Raises:
        CannotTakePart: with the reason, as the end of a sentence.
    """
    try:
        yield
    except (ValueError, RuntimeError, NotImplementedError) as error:
        if candidate.is_ours:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CannotTakePart(f"it does not run here ({reason})") from error


MLX_QUANTIZED = (Candidate("mlx8", FP16, 8), Candidate("mlx4", FP16, 4))
"""mlx-lm's ``--kv-bits 8`` and ``--kv-bits 4``."""


CONTESTANTS = tuple(f"{family}{bits}" for family in ("kvarn", "swift") for bits in (4, 3, 2))
"""Published codecs, rebuilt to measure their quality (see ``contestants``)."""

OTHERS = (*MLX_QUANTIZED, *(Candidate(name, FP16, contestant=name) for name in CONTESTANTS))
"""Everything that is not one of our schemes."""


def parse_candidates(names: str) -> tuple[Candidate, ...]:
    """Parse a comma-separated list; ``all`` means the listed schemes and ``OTHERS``.

    Raises:
        UnknownCandidate: if a name is not known.
    """
    others = {candidate.name: candidate for candidate in OTHERS}
    found: dict[str, Candidate] = {}
    for name in (part.strip().lower() for part in names.split(",")):
        if name == "all":
            chosen = [*(Candidate(scheme.name, scheme) for scheme in SCHEMES), *OTHERS]
        elif name in others:
            chosen = [others[name]]
        else:
            try:
                scheme = parse_scheme(name)
            except UnknownScheme as error:
                hint = f"{error} Measurements also accept {', '.join(others)} (codecs of others) and all."
                raise UnknownCandidate(hint) from error
            chosen = [Candidate(scheme.name, scheme)]
        found |= {candidate.name: candidate for candidate in chosen}
    return tuple(found.values())


def decode_runs(scheme: Scheme, start: int, stop: int, longest: int) -> Iterator[tuple[int, int]]:
    """Split tokens ``start`` to ``stop`` into the fewest forward passes equivalent to single steps.

    A cache packs in single-token steps, a tile at a time. Between two packing steps the raw and packed tokens
    are the same, so those tokens can be fed together under a causal mask: same arithmetic, fewer calls.

    Args:
        start: Tokens in the cache. Its prompt must be packed already: the token after it is fed alone.
        longest: Maximum tokens per pass; 1 feeds every token by itself.
    """
    while start < stop:
        end = start + 1
        if _packed(scheme, end) == _packed(scheme, start):
            while end < min(stop, start + longest) and _packed(scheme, end + 1) == _packed(scheme, start):
                end += 1
        yield start, end
        start = end


def _packed(scheme: Scheme, tokens: int) -> int:
    """Packed tokens of a cache that reached ``tokens`` tokens in single steps."""
    return scheme.packable(tokens - scheme.sinks)
