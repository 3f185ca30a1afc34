"""A model's quality profile: measured KLD of each scheme. Stored beside the caches, read by ``auto``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqchat.engine.commands import STARTER
from tqchat.engine.events import ModelInfo
from tqchat.engine.memory.allocation import Sensitivity
from tqchat.errors import TqchatError
from tqchat.files import write_atomically
from tqchat.paths import Paths, bundled, make_private_folder

FORMAT_VERSION = 1


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
    """Write a profile; returns its file.

    Raises:
        ProfileNotSaved: if it cannot be written.
    """
    place = profiles_folder(paths) / f"{profile.fingerprint}.json"
    try:
        make_private_folder(place.parent)
        text = json.dumps({"format": FORMAT_VERSION, **asdict(profile)}, indent=2)
        write_atomically(place, f"{text}\n".encode())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ProfileNotSaved(f"The profile {place} cannot be written ({reason}).") from error
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
        table: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        if table.pop("format") != FORMAT_VERSION or table["codec"] != codec_version():
            return None
        rows = tuple(SchemeQuality(**row) for row in table.pop("rows"))
        saved = table.pop("sensitivity", None)
        sensitivity = None if saved is None else Sensitivity.from_json(saved)
        return Profile(**table, rows=rows, sensitivity=sensitivity)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
