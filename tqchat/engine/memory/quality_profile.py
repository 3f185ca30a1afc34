"""A model's quality profile: measured KLD of each scheme. Stored beside the caches, read by ``auto``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqchat.engine.commands import STARTER
from tqchat.engine.events import ModelInfo
from tqchat.engine.memory.allocation import Sensitivity
from tqchat.errors import TqchatError
from tqchat.files import Unreadable, keep_beside, read_json, reason_of, write_atomically
from tqchat.kv.scheme import UnknownScheme, parse_scheme
from tqchat.paths import Paths, bundled, make_private_folder

FORMAT_VERSION = 1

_MAX_BYTES = 1 << 20
_MAX_ROWS = 1_000
_MAX_TEXT_CHARS = 1_000
_MAX_COUNT = 1 << 60


class ProfileNotSaved(TqchatError):
    """The profile could not be written."""


@dataclass(frozen=True)
class SchemeQuality:
    """One scheme on one model, against the FP16 cache.

    Attributes:
        kld_mean, kld_p99: Mean and 99th percentile of KLD, in nats.
        top1: Share of positions with the same likeliest next token.
        bytes, fp16_bytes: Size of the cache after the last token.
        ratio: Compression ratio.
    """

    scheme: str
    kld_mean: float
    kld_p99: float
    top1: float
    bytes: int
    fp16_bytes: int
    ratio: float


@dataclass(frozen=True)
class Profile:
    """Measured schemes of one model, on ``tokens`` tokens of the built-in text.

    Attributes:
        sensitivity: Of the model's layers; the schemes were measured with bits allocated by it.
    """

    model: str
    fingerprint: str
    codec: int
    tokens: int
    rows: tuple[SchemeQuality, ...]
    sensitivity: Sensitivity | None = None

    def row(self, scheme: str) -> SchemeQuality | None:
        """The measurement of a scheme."""
        return next((row for row in self.rows if row.scheme == scheme), None)


def profiles_folder(paths: Paths) -> Path:
    """The folder of profiles, one file per model."""
    return paths.cache_dir / "profiles"


def codec_version() -> int:
    """Version of the codec, part of every profile: one measured with another version is not used."""
    from tqchat.kv.snapshot import CODEC_VERSION

    return CODEC_VERSION


def save(paths: Paths, profile: Profile) -> Path:
    """Write a profile; returns its file. One of another version is kept under a dated name.

    Raises:
        ProfileNotSaved: if it cannot be written.
    """
    place = profiles_folder(paths) / f"{profile.fingerprint}.json"
    try:
        make_private_folder(place.parent)
        if place.exists() and _read(place) is None:
            keep_beside(place)
        text = json.dumps({"format": FORMAT_VERSION, **asdict(profile)}, indent=2)
        write_atomically(place, f"{text}\n".encode())
    except OSError as error:
        raise ProfileNotSaved(f"The profile {place} cannot be written ({reason_of(error)}).") from error
    return place


def find(paths: Paths, model: ModelInfo) -> Profile | None:
    """The model's profile: measured on this machine, or shipped with the bundled model."""
    found = load(paths, model.fingerprint)
    if found is None and model.ref == STARTER:
        return _read(bundled("starter-profile"))
    return found


def load(paths: Paths, fingerprint: str) -> Profile | None:
    """The profile measured on this machine with this codec; ``None`` if there is none or it is damaged."""
    profile = _read(profiles_folder(paths) / f"{fingerprint}.json")
    return profile if profile is not None and profile.fingerprint == fingerprint else None


def _read(place: Path) -> Profile | None:
    try:
        table = read_json(place, _MAX_BYTES)
    except (FileNotFoundError, Unreadable):
        return None
    if table.pop("format", None) != FORMAT_VERSION or table.get("codec") != codec_version():
        return None
    rows, saved = table.pop("rows", None), table.pop("sensitivity", None)
    if not _fits(table, _PROFILE) or not isinstance(rows, list) or len(rows) > _MAX_ROWS:
        return None
    if not all(isinstance(row, dict) and _fits(row, _ROW) for row in rows):
        return None
    try:
        sensitivity = None if saved is None else Sensitivity.from_json(saved)
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    return Profile(**table, rows=tuple(SchemeQuality(**row) for row in rows), sensitivity=sensitivity)


def _fits(table: Mapping[str, Any], checks: Mapping[str, Callable[[Any], bool]]) -> bool:
    return table.keys() == checks.keys() and all(check(table[key]) for key, check in checks.items())


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT_CHARS


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_COUNT


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _MAX_COUNT and math.isfinite(value)


def _scheme(value: Any) -> bool:
    try:
        return _text(value) and bool(parse_scheme(value))
    except UnknownScheme:
        return False


_PROFILE = {"model": _text, "fingerprint": _text, "codec": _count, "tokens": _count}
_ROW = {
    "scheme": _scheme,
    "kld_mean": _number,
    "kld_p99": _number,
    "top1": _number,
    "bytes": _count,
    "fp16_bytes": _count,
    "ratio": _number,
}
