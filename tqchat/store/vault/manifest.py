"""What says which files make a conversation's cache. Small, replaced in one step, read without MLX."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tqchat.errors import TqchatError
from tqchat.store.vault.segments import SUFFIX, StoredFile

FORMAT = 3
"""Goes up whenever a manifest of an older version would be read differently."""

MANIFEST = "manifest.json"
BRANCH = "branch-"
"""Manifests of the conversation's other branches begin so."""

_NAME = re.compile(r"[0-9a-f]{32}\.safetensors", re.ASCII)
_LARGEST = 8 << 20
"""Bytes. A hundred times what a long conversation takes; what is read becomes many objects."""
_WORTH_KEEPING = 16
"""A beginning of a segment shorter than this is written anew."""


class ManifestError(TqchatError):
    """A manifest that is not as it was written."""


@dataclass(frozen=True)
class Piece:
    """The tokens ``[start, used)`` of a conversation, from a segment that holds ``[start, end)``."""

    file: StoredFile
    start: int
    end: int
    used: int


Pieces = tuple[Piece, ...]


@dataclass(frozen=True)
class Saved:
    """A checkpoint: the layers that cannot be trimmed, as they were after so many tokens.

    Attributes:
        layers: Their indices and descriptions, as ``tqchat.kv.checkpoint`` wants them back.
    """

    file: StoredFile
    tokens: int
    layers: dict[int, Any]


def cut(pieces: Pieces, keep: int) -> Pieces:
    """The pieces of the first ``keep`` tokens. A segment that would be mostly unused is left out: what it
    holds of them is written again, rather than kept for its smaller half."""
    kept = []
    for piece in pieces:
        used = min(piece.used, keep)
        if used < piece.used and (used - piece.start < _WORTH_KEEPING or 2 * used < piece.start + piece.end):
            break
        kept.append(replace(piece, used=used))
        if used < piece.used:
            break
    return tuple(kept)


def covered(pieces: Pieces) -> int:
    """How many leading tokens the pieces hold."""
    return pieces[-1].used if pieces else 0


@dataclass(frozen=True)
class Manifest:
    """One state of one conversation's cache.

    Attributes:
        rounding: The fewest bits (of keys, of values) that its history has been through.
        layout: Kinds and shapes of its layers.
        structure: The layers' description, as ``tqchat.kv.ranges`` wants it back.
        pieces: The settled tokens.
        rest: The file with everything else.
        checkpoints: What a cache that cannot be trimmed can go back to, the shortest first.
        tokens: How many tokens all of it holds.
        prefix_is_usable: Whether the settled tokens alone are a cache to continue from.
        digest: Over everything above.
    """

    conversation: str
    fingerprint: str
    model: str
    scheme: str
    rounding: tuple[int, int]
    layout: list[Any]
    structure: list[Any]
    pieces: Pieces
    rest: StoredFile
    checkpoints: tuple[Saved, ...]
    tokens: int
    prefix_is_usable: bool
    saved_at: float
    format: int = FORMAT
    codec: int = 0
    mlx_lm: str = ""

    @property
    def files(self) -> set[str]:
        """The names of its files."""
        files = [self.rest, *(one.file for one in self.pieces), *(one.file for one in self.checkpoints)]
        return {file.name for file in files}

    def reach(self, shared: int) -> int:
        """How many tokens a continuation that shares the first ``shared`` can begin with."""
        if self.prefix_is_usable or shared >= self.tokens:
            return shared
        return max((one.tokens for one in self.checkpoints if one.tokens <= shared), default=0)

    def to_json(self) -> bytes:
        """The content of the manifest's file."""
        told = vars(self) | {
            "pieces": [[*vars(p.file).values(), p.start, p.end, p.used] for p in self.pieces],
            "rest": [*vars(self.rest).values()],
            "checkpoints": [
                [*vars(one.file).values(), one.tokens, list(one.layers), _fold(list(one.layers.values()))]
                for one in self.checkpoints
            ],
            "structure": _fold(self.structure),
            "layout": _fold(self.layout),
        }
        return json.dumps(told | {"digest": digest(told)}, separators=(",", ":")).encode()

    def mismatch(self, conversation: str, fingerprint: str, scheme: str) -> str | None:
        """Why it is not a cache of this conversation for this model, ``None`` if it is."""
        if self.format != FORMAT or self.codec != codec_version():
            return "The saved cache was written by another version of tqchat"
        if self.mlx_lm != metadata.version("mlx-lm"):
            return f"The saved cache was made under mlx-lm {self.mlx_lm}, and this is another version"
        if self.conversation != conversation:
            return "The saved cache is another conversation's"
        if self.fingerprint != fingerprint:
            made = f" ({self.model})" if self.model else ""
            return f"The saved cache was made with another model, or another version of it{made}"
        if self.scheme != scheme:
            return f"The saved cache is under {self.scheme}, and this conversation under {scheme}"
        return None


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        ManifestError: if it is damaged or of another version.
        OSError: if it cannot be read.
    """
    if path.stat().st_size > _LARGEST:
        raise ManifestError("The saved cache has a damaged manifest")
    try:
        told = json.loads(path.read_bytes())
        if told.pop("digest") != digest(told):
            raise ValueError("digest")
        if told["format"] != FORMAT:
            raise ManifestError("The saved cache was written by another version of tqchat")
        keys, values = told["rounding"]
        manifest = Manifest(
            **told
            | {
                "rounding": (int(keys), int(values)),
                "pieces": tuple(_pieces(told["pieces"])),
                "rest": _file(*told["rest"]),
                "checkpoints": tuple(_checkpoints(told["checkpoints"])),
                "structure": _unfold(told["structure"]),
                "layout": _unfold(told["layout"]),
                "tokens": int(told["tokens"]),
                "saved_at": float(told["saved_at"]),
            }
        )
        if covered(manifest.pieces) > manifest.tokens:
            raise ValueError("tokens")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ManifestError("The saved cache has a damaged manifest") from error
    return manifest


def digest(told: dict[str, Any]) -> str:
    """The checksum of a manifest's content."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def codec_version() -> int:
    """The version of what is in the segments."""
    from tqchat.kv.snapshot import CODEC_VERSION

    return CODEC_VERSION


def _file(name: str, size: int, sha256: str) -> StoredFile:
    if not _NAME.fullmatch(name) or not name.endswith(SUFFIX) or int(size) < 0:
        raise ValueError(name)
    return StoredFile(name, int(size), str(sha256))


def _pieces(told: Iterable[Any]) -> Iterable[Piece]:
    at = 0
    for name, size, sha256, start, end, used in told:
        if not at == start < used <= end:
            raise ValueError("pieces")
        yield Piece(_file(name, size, sha256), start, end, used)
        at = used


def _checkpoints(told: Iterable[Any]) -> Iterable[Saved]:
    for name, size, sha256, tokens, indices, layers in told:
        yield Saved(_file(name, size, sha256), int(tokens), dict(zip(indices, _unfold(layers), strict=True)))


def _fold(items: list[Any]) -> list[Any]:
    """Layers are mostly alike: each description once, and which layer has which."""
    kinds: list[Any] = []
    for item in items:
        if item not in kinds:
            kinds.append(item)
    return [kinds, [kinds.index(item) for item in items]]


def _unfold(folded: Any) -> list[Any]:
    kinds, which = folded
    return [kinds[index] for index in which]
