"""What a model was measured to lose under each scheme: kept beside the caches, read when ``auto`` chooses."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqchat.engine.commands import STARTER
from tqchat.engine.events import ModelInfo
from tqchat.errors import TqchatError
from tqchat.files import write_atomically
from tqchat.paths import Paths, bundled, make_private_folder

FORMAT = 1
"""Goes up when the file's form changes."""


class ProfileNotSaved(TqchatError):
    """The profile could not be written."""


@dataclass(frozen=True)
class Measured:
    """One scheme on one model: mean and 99th-percentile KLD in nats against the FP16 cache, the share of

    same likeliest next tokens, and what the cache took at the end.
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
    """A model's measured schemes, on ``tokens`` tokens of the built-in text."""

    model: str
    fingerprint: str
    codec: int
    tokens: int
    rows: tuple[Measured, ...]

    def row(self, scheme: str) -> Measured | None:
        """What was measured under a scheme."""
        return next((row for row in self.rows if row.scheme == scheme), None)


def folder(paths: Paths) -> Path:
    """Where profiles are: one file for each model."""
    return paths.cache_dir / "profiles"


def codec_version() -> int:
    """The codec that is measured: its version is part of every profile."""
    from tqchat.kv.snapshot import CODEC_VERSION

    return CODEC_VERSION


def save(paths: Paths, profile: Profile) -> Path:
    """Keep a profile; returns the file.

    Raises:
        ProfileNotSaved: if it cannot be written.
    """
    place = folder(paths) / f"{profile.fingerprint}.json"
    try:
        make_private_folder(place.parent)
        text = json.dumps({"format": FORMAT, **asdict(profile)}, indent=2)
        write_atomically(place, f"{text}\n".encode())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ProfileNotSaved(f"The profile {place} cannot be written ({reason}).") from error
    return place


def of(paths: Paths, model: ModelInfo) -> Profile | None:
    """The model's profile: what was measured here, or what comes with the bundled model."""
    found = load(paths, model.fingerprint)
    if found is None and model.ref == STARTER:
        return _read(bundled("starter-profile"))
    return found


def load(paths: Paths, fingerprint: str) -> Profile | None:
    """What was measured here on the model with this fingerprint; ``None`` if nothing was by this codec.

    A damaged file counts as none: it can be measured again.
    """
    profile = _read(folder(paths) / f"{fingerprint}.json")
    return profile if profile is not None and profile.fingerprint == fingerprint else None


def _read(place: Path) -> Profile | None:
    try:
        told: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        if told.pop("format") != FORMAT or told["codec"] != codec_version():
            return None
        rows = tuple(Measured(**row) for row in told.pop("rows"))
        return Profile(**told, rows=rows)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
