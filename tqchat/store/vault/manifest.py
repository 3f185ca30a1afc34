"""The manifest: lists the files of a conversation's cache. Small, replaced atomically, read without MLX."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tqchat.errors import TqchatError
from tqchat.files import Unreadable, read_bytes
from tqchat.store.vault.segments import EARLIER_PREFIX, SUFFIX, StoredFile
from tqchat.text import one_line

FORMAT = 3
"""Manifest version; increase it when older manifests would be read differently."""

MANIFEST = "manifest.json"
BRANCH_PREFIX = "branch-"
"""File name prefix of manifests of other branches."""

_NAME = re.compile(rf"(?:{EARLIER_PREFIX})?[0-9a-f]{{32}}\.safetensors", re.ASCII)
_MAX_MANIFEST_BYTES = 8 << 20
"""A hundred times the manifest of a long conversation; larger files are not parsed."""
_MAX_SHOWN_CHARS = 100
_MIN_REUSED_TOKENS = 16
"""Tokens of a trimmed segment below which it is rewritten instead of reused."""


@cache
def mlx_lm_version() -> str:
    """The installed version of mlx-lm, with which every saved cache is compared: finding it takes 2 ms."""
    return metadata.version("mlx-lm")


class ManifestError(TqchatError):
    """A damaged manifest, or one of another version."""


@dataclass(frozen=True)
class Piece:
    """The used part of a segment: tokens ``[start, used)`` of a segment that holds ``[start, end)``."""

    file: StoredFile
    start: int
    end: int
    used: int


Pieces = tuple[Piece, ...]


@dataclass(frozen=True)
class SavedCheckpoint:
    """A stored checkpoint: the state of the layers that cannot be trimmed.

    Attributes:
        tokens: Length of the sequence at the checkpoint.
        layers: Layer descriptions by index, for ``tqchat.kv.checkpoint.rebuild``.
    """

    file: StoredFile
    tokens: int
    layers: dict[int, Any]


@dataclass(frozen=True)
class SavedEarlier:
    """A stored file of tokens as they were under earlier schemes.

    Attributes:
        sides: The layer of each side, the number of its arrays and its description, for
            ``tqchat.kv.storage.earlier_files.attach``. Layers are named by ``layer_names``.
    """

    file: StoredFile
    sides: list[tuple[str, int, list[Any]]]


def layer_names(live: Sequence[Any], checkpoints: Mapping[int, Mapping[int, Any]]) -> dict[str, Any]:
    """The layers of a cache and of its checkpoints, by the names that manifests have for them."""
    layers = {str(index): layer for index, layer in enumerate(live)}
    for number, kept in checkpoints.items():
        layers |= {f"{number}.{index}": layer for index, layer in kept.items()}
    return layers


def trim_pieces(pieces: Pieces, keep: int) -> Pieces:
    """The pieces of the first ``keep`` tokens. A segment of which more than half would be unused is dropped:
    its remaining tokens are written again."""
    kept = []
    for piece in pieces:
        used = min(piece.used, keep)
        if used < piece.used and (
            used - piece.start < _MIN_REUSED_TOKENS or 2 * used < piece.start + piece.end
        ):
            break
        kept.append(replace(piece, used=used))
        if used < piece.used:
            break
    return tuple(kept)


def covered_tokens(pieces: Pieces) -> int:
    """The number of leading tokens that the pieces cover."""
    return pieces[-1].used if pieces else 0


@dataclass(frozen=True)
class Manifest:
    """One saved state of a conversation's cache.

    Attributes:
        rounding: The fewest bits (keys, values) of packed tokens under earlier schemes; 16 if none.
        layout: Kinds and shapes of the layers.
        structure: Layer descriptions, for ``tqchat.kv.ranges.rebuild``.
        pieces: The segments of the immutable tokens (see ``tqchat.kv.ranges``).
        rest: The file with all other arrays.
        checkpoints: Checkpoints of a cache that cannot be trimmed, shortest first.
        tokens: Length of the cached sequence.
        prefix_is_usable: Whether the immutable tokens alone form a usable cache.
        earlier: What the layers keep of earlier schemes; missing or damaged files are no loss.
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
    checkpoints: tuple[SavedCheckpoint, ...]
    tokens: int
    prefix_is_usable: bool
    saved_at: float
    format: int = FORMAT
    codec: int = 0
    mlx_lm: str = ""
    earlier: tuple[SavedEarlier, ...] = ()

    @property
    def files(self) -> set[str]:
        """Names of all files it refers to."""
        files = [self.rest, *(one.file for one in self.pieces), *(one.file for one in self.checkpoints)]
        files += [one.file for one in self.earlier]
        return {file.name for file in files}

    def restorable_tokens(self, shared: int) -> int:
        """Number of the first ``shared`` tokens that this cache can be continued from."""
        if self.prefix_is_usable or shared >= self.tokens:
            return shared
        return max((one.tokens for one in self.checkpoints if one.tokens <= shared), default=0)

    def to_json(self) -> bytes:
        """Serialise it, with a digest."""
        data = vars(self) | {
            "pieces": [[*vars(p.file).values(), p.start, p.end, p.used] for p in self.pieces],
            "rest": [*vars(self.rest).values()],
            "checkpoints": [
                [
                    *vars(one.file).values(),
                    one.tokens,
                    list(one.layers),
                    _deduplicate(list(one.layers.values())),
                ]
                for one in self.checkpoints
            ],
            "earlier": [
                [
                    *vars(one.file).values(),
                    [name for name, _, _ in one.sides],
                    [number for _, number, _ in one.sides],
                    _deduplicate([description for _, _, description in one.sides]),
                ]
                for one in self.earlier
            ],
            "structure": _deduplicate(self.structure),
            "layout": _deduplicate(self.layout),
        }
        return json.dumps(data | {"digest": digest(data)}, separators=(",", ":")).encode()

    def mismatch(self, conversation: str, fingerprint: str, scheme: str) -> str | None:
        """Why the cache cannot be used for this conversation, model and scheme; ``None`` if it can."""
        if self.format != FORMAT or self.codec != codec_version():
            return "The saved cache was written by another version of tqchat"
        if self.mlx_lm != mlx_lm_version():
            made = _short(self.mlx_lm)
            return f"The saved cache was made with mlx-lm {made}, and another version is installed"
        if self.conversation != conversation:
            return "The saved cache belongs to another conversation"
        if self.fingerprint != fingerprint:
            made = f" ({_short(self.model)})" if self.model else ""
            return f"The saved cache was made with another model or another version of the model{made}"
        if self.scheme != scheme:
            return f"The saved cache uses scheme {_short(self.scheme)}, but this conversation uses {scheme}"
        return None


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        ManifestError: if it is damaged, cannot be read, or is of another version.
        FileNotFoundError: if there is none.
    """
    try:
        content = read_bytes(path, _MAX_MANIFEST_BYTES)
    except Unreadable as error:
        raise ManifestError(f"The manifest of the saved cache {error.reason}") from error
    try:
        data = json.loads(content)
        if data.pop("digest") != digest(data):
            raise ValueError("digest")
        if data["format"] != FORMAT:
            raise ManifestError("The saved cache was written by another version of tqchat")
        keys, values = data["rounding"]
        manifest = Manifest(
            **data
            | {
                "rounding": (int(keys), int(values)),
                "pieces": tuple(_pieces(data["pieces"])),
                "rest": _file(*data["rest"]),
                "checkpoints": tuple(_checkpoints(data["checkpoints"])),
                "earlier": tuple(_earlier(data.get("earlier", ()))),  # older manifests have none
                "structure": _expand(data["structure"]),
                "layout": _expand(data["layout"]),
                "tokens": int(data["tokens"]),
                "saved_at": float(data["saved_at"]),
            }
        )
        if covered_tokens(manifest.pieces) > manifest.tokens:
            raise ValueError("tokens")
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ManifestError("The manifest of the saved cache is damaged") from error
    return manifest


def _short(value: object) -> str:
    return one_line(str(value)[:_MAX_SHOWN_CHARS])


def digest(data: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def codec_version() -> int:
    """Version of the arrays in segments."""
    from tqchat.kv.snapshot import CODEC_VERSION

    return CODEC_VERSION


def _file(name: str, size: int, sha256: str) -> StoredFile:
    if not _NAME.fullmatch(name) or not name.endswith(SUFFIX) or int(size) < 0:
        raise ValueError(name)
    return StoredFile(name, int(size), str(sha256))


def _pieces(data: Iterable[Any]) -> Iterable[Piece]:
    at = 0
    for name, size, sha256, start, end, used in data:
        if not at == start < used <= end:
            raise ValueError("pieces")
        yield Piece(_file(name, size, sha256), start, end, used)
        at = used


def _checkpoints(data: Iterable[Any]) -> Iterable[SavedCheckpoint]:
    for name, size, sha256, tokens, indices, layers in data:
        yield SavedCheckpoint(
            _file(name, size, sha256), int(tokens), dict(zip(indices, _expand(layers), strict=True))
        )


def _earlier(data: Iterable[Any]) -> Iterable[SavedEarlier]:
    for name, size, sha256, names, numbers, descriptions in data:
        sides = list(zip(names, numbers, _expand(descriptions), strict=True))
        yield SavedEarlier(_file(name, size, sha256), sides)


def _deduplicate(items: list[Any]) -> list[Any]:
    """Store each distinct layer description once: [descriptions, index per layer]."""
    kinds: list[Any] = []
    for item in items:
        if item not in kinds:
            kinds.append(item)
    return [kinds, [kinds.index(item) for item in items]]


def _expand(folded: Any) -> list[Any]:
    kinds, which = folded
    return [kinds[index] for index in which]
