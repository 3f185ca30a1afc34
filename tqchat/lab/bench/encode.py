"""Time of packing: one tile, as during decoding, and a chunk of a prompt."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Literal

import mlx.core as mx

from tqchat.kv.codec.base import Format
from tqchat.kv.codec.fitting import NO_STATISTICS
from tqchat.kv.codec.formats import make_format
from tqchat.kv.kernels.encode import encode as encode_block
from tqchat.kv.scheme import TILE, FormatSpec
from tqchat.lab.bench import timing
from tqchat.lab.bench.attention import Layer
from tqchat.lab.bench.results import BenchRow
from tqchat.lab.candidates import Candidate

CHUNK_TOKENS = 2048
CALLS_PER_ROUND = {TILE: 20, CHUNK_TOKENS: 2}


def encode(
    layer: Layer, candidates: Sequence[Candidate], rounds: int, tell: Callable[[str], None]
) -> Iterator[BenchRow]:
    """Encode both sides of one layer under each scheme that packs, a tile and a chunk at a time."""
    packing = [c for c in candidates if c.mlx_bits is None and c.scheme.compresses]
    for count in (TILE, CHUNK_TOKENS):
        x = mx.random.normal((1, layer.kv_heads, count, layer.head_dim), dtype=mx.float16)
        mx.eval(x)
        formats = {c.name: [f for f in _formats(c, layer) if f is not None] for c in packing}
        runs = {name: partial(_time_encode, formats, x) for name, formats in formats.items()}
        tell(f"encode {count:,} tokens")
        times = timing.time_interleaved(runs, rounds)
        for name, own in times.items():
            middle = median(own)
            yield BenchRow("encode", name, count, middle, timing.spread(own), count / middle)


def _formats(candidate: Candidate, layer: Layer) -> Iterator[Format | None]:
    sample = mx.random.normal((1, layer.kv_heads, 256, layer.head_dim), dtype=mx.float16)
    sides: tuple[tuple[Literal["key", "value"], FormatSpec], ...] = (
        ("key", candidate.scheme.key),
        ("value", candidate.scheme.value),
    )
    for role, spec in sides:
        raw = not spec.saves_memory(layer.head_dim)
        yield None if raw else make_format(spec, layer.head_dim, role).fit(sample, NO_STATISTICS)


def _time_encode(formats: Sequence[Format], x: mx.array) -> float:
    calls = CALLS_PER_ROUND[x.shape[2]]
    began = time.perf_counter()
    for _ in range(calls):
        mx.eval([encode_block(one, x) for one in formats])
    return (time.perf_counter() - began) / calls
