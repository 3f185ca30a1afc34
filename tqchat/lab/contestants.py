"""What can be measured: every scheme, and as peers the quantised caches that mlx-lm itself offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tqchat.errors import TqchatError
from tqchat.kv.scheme import FP16, SCHEMES, Scheme, UnknownScheme, parse_scheme


class UnknownContestant(TqchatError):
    """A name is neither a scheme nor a peer."""

    exit_code = 2


@dataclass(frozen=True)
class Contestant:
    """A way of keeping the cache.

    Either a ``scheme`` of ours, or mlx-lm's ``QuantizedKVCache`` at ``peer_bits`` (``scheme`` is then what
    the prompt is read under, before mlx-lm converts it).
    """

    name: str
    scheme: Scheme
    peer_bits: int | None = None


PEERS = (Contestant("mlx8", FP16, 8), Contestant("mlx4", FP16, 4))
"""mlx-lm's ``--kv-bits 8`` and ``--kv-bits 4``."""


def parse_contestants(names: str) -> tuple[Contestant, ...]:
    """The contestants of a comma-separated list; ``all`` stands for the listed schemes and the peers.

    Raises:
        UnknownContestant: if a name is none of them.
    """
    peers = {peer.name: peer for peer in PEERS}
    found: dict[str, Contestant] = {}
    for name in (part.strip().lower() for part in names.split(",")):
        if name == "all":
            chosen = [*(Contestant(scheme.name, scheme) for scheme in SCHEMES), *PEERS]
        elif name in peers:
            chosen = [peers[name]]
        else:
            try:
                scheme = parse_scheme(name)
            except UnknownScheme as error:
                hint = f"{error} The laboratory also knows {', '.join(peers)} (mlx-lm's own) and all."
                raise UnknownContestant(hint) from error
            chosen = [Contestant(scheme.name, scheme)]
        found |= {contestant.name: contestant for contestant in chosen}
    return tuple(found.values())


def decode_runs(scheme: Scheme, start: int, stop: int, longest: int) -> Iterator[tuple[int, int]]:
    """How to feed tokens ``start`` to ``stop`` in as few goes as leave the cache as single steps would.

    A cache packs in single-token steps, a tile at a time. Between two packings the same tokens are raw and
    packed for every step, so those can go in together, under a causal mask: same arithmetic, fewer calls.

    Args:
        start: How many tokens the cache holds. A prompt must have been packed already: the token after it
            goes in alone.
        longest: The most tokens in one go; 1 feeds every token by itself.
    """
    while start < stop:
        end = start + 1
        if _packed(scheme, end) == _packed(scheme, start):
            while end < min(stop, start + longest) and _packed(scheme, end + 1) == _packed(scheme, start):
                end += 1
        yield start, end
        start = end


def _packed(scheme: Scheme, tokens: int) -> int:
    """How many of ``tokens`` are packed once single steps have led there."""
    return scheme.packable(tokens - scheme.sinks)
