"""Rebuilding a saved cache from a manifest's files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqchat.errors import TqchatError
from tqchat.store.vault import segments
from tqchat.store.vault.manifest import Manifest, Piece, Pieces, covered_tokens, layer_names, trim_pieces
from tqchat.store.vault.segments import SegmentError

if TYPE_CHECKING:
    from tqchat.kv.checkpoint import Checkpoint

READ_ERRORS = (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError, MemoryError)
"""Exceptions that damaged content can cause while a cache is rebuilt."""


@dataclass(frozen=True)
class Restored:
    """A restored cache: exactly what was saved, possibly trimmed, and its tokens.

    Attributes:
        rounding: The fewest bits (keys, values) at which any of its tokens was ever stored.
        pieces: Segments that the next save of this cache can reuse.
        checkpoints: Checkpoints of a cache that cannot be trimmed, shortest first.
        damage: Why it is shorter than what was saved; a sentence without a full stop.
    """

    cache: list[Any]
    tokens: list[int]
    rounding: tuple[int, int]
    pieces: Pieces = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    damage: str | None = None


@dataclass(frozen=True)
class Refused:
    """Why a saved cache cannot be used; a sentence without a full stop."""

    reason: str


def restore(folder: Path, manifest: Manifest) -> Restored | Refused:
    """Rebuild a manifest's cache, up to the first damaged segment."""
    from tqchat.kv import ranges
    from tqchat.store.vault import joined_read

    parts: list[dict[str, Any]] = []
    tokens: list[int] = []
    pieces: list[Piece] = []
    damage = None
    if (joined := joined_read.read(folder, manifest)) is not None:
        tokens, parts, pieces = joined.pop("tokens").tolist(), [joined], list(manifest.pieces)
    else:
        damage = _read_one_by_one(folder, manifest, parts, tokens, pieces)
    found = _checkpoints(folder, manifest, len(tokens))
    checkpoints = list(found.values())
    whole: dict[int, Any] = {}
    if damage is not None and not manifest.prefix_is_usable:
        if not checkpoints:
            return Refused(f"The saved cache is damaged ({damage})")
        # Continue from the last checkpoint.
        last = checkpoints.pop()
        whole, tokens = last.layers, tokens[: last.tokens]
        pieces = [piece for piece in pieces if piece.start < last.tokens]
        parts = [
            ranges.truncate_range(arrays, piece.start, min(piece.used, last.tokens))
            for arrays, piece in zip(parts, pieces, strict=False)
        ]
    if not tokens:
        return Refused(f"The saved cache is damaged ({damage})")
    cache = ranges.rebuild(manifest.structure, parts, len(tokens), whole)
    if layout(cache) != manifest.layout:
        return Refused("The saved cache is damaged (its layers differ from the manifest)")
    _attach_earlier(folder, manifest, cache, found)
    if damage is not None:
        damage = f"The saved cache is damaged from token {len(tokens) + 1:,} on ({damage})"
    return Restored(
        cache=cache,
        tokens=tokens,
        rounding=manifest.rounding,
        pieces=trim_pieces(tuple(pieces), len(tokens)),
        checkpoints=tuple(checkpoints),
        damage=damage if len(tokens) < manifest.tokens else None,
    )


def _read_one_by_one(
    folder: Path, manifest: Manifest, parts: list[dict[str, Any]], tokens: list[int], pieces: list[Piece]
) -> str | None:
    """Add the arrays and tokens of the manifest's files up to the first damaged one; returns its damage."""
    from tqchat.kv import ranges

    try:
        for piece in manifest.pieces:
            arrays = segments.read(folder, piece.file)
            tokens += _tokens(arrays, piece.end - piece.start)[: piece.used - piece.start]
            parts.append(
                ranges.truncate_range(arrays, piece.start, piece.used) if piece.used < piece.end else arrays
            )
            pieces.append(piece)
        arrays = segments.read(folder, manifest.rest)
        tokens += _tokens(arrays, manifest.tokens - covered_tokens(manifest.pieces))
        parts.append(arrays)
    except SegmentError as error:
        return str(error)
    return None


def _checkpoints(folder: Path, manifest: Manifest, tokens: int) -> dict[int, Checkpoint]:
    """The intact checkpoints within the first ``tokens`` tokens by number; damaged ones are left out."""
    from tqchat.kv import checkpoint

    found = {}
    for number, saved in enumerate(manifest.checkpoints):
        try:
            if saved.tokens <= tokens:
                arrays = segments.read(folder, saved.file)
                found[number] = checkpoint.rebuild(saved.tokens, saved.layers, arrays)
                found[number].stored = saved.file
        except (TqchatError, *READ_ERRORS):
            continue
    return found


def _attach_earlier(
    folder: Path, manifest: Manifest, cache: list[Any], checkpoints: Mapping[int, Checkpoint]
) -> None:
    """Give the layers what they keep of earlier schemes; what is missing or damaged is left out."""
    from tqchat.kv.prompt_cache import flat_layers
    from tqchat.kv.storage.earlier_files import attach

    layers = layer_names(flat_layers(cache), {number: one.layers for number, one in checkpoints.items()})
    for saved in manifest.earlier:
        with suppress(SegmentError):
            attach(layers, saved.sides, segments.open_arrays(folder, saved.file))


def _tokens(arrays: dict[str, Any], count: int) -> list[int]:
    tokens: list[int] = arrays.pop("tokens").tolist()
    if len(tokens) != count:
        raise SegmentError("a file has the wrong number of tokens")
    return tokens


def layout(cache: list[Any]) -> list[list[Any]]:
    """Kinds and shapes of a cache's layers."""
    from tqchat import kv

    layers = kv.memory_report(cache).layers
    return [[layer.kind, layer.scheme, layer.heads, layer.key_dim, layer.value_dim] for layer in layers]
