"""Conversations' caches on disk: one snapshot each, and a manifest that says what it is.

Caches are expendable, so anything doubtful is refused with a reason and the transcript is read again. MLX is
imported when a snapshot is written or read, not before."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tqchat.errors import TqchatError
from tqchat.files import write_atomically
from tqchat.paths import UnusableFolder, make_private_folder

FORMAT = 1
"""Goes up whenever a manifest of an older version would be read differently."""

MANIFEST = "manifest.json"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", re.ASCII)
_TEMPORARY = "new-"
_STALE_SECONDS = 3600
"""A temporary snapshot this old was left behind by a killed process."""


class VaultError(TqchatError):
    """A cache could not be saved or removed."""


@dataclass(frozen=True)
class Restored:
    """A cache that is exactly what was saved, and the tokens that it holds.

    ``rounding`` are the fewest bits (of keys, of values) that its history has been through.
    """

    cache: list[Any]
    tokens: list[int]
    rounding: tuple[int, int]


@dataclass(frozen=True)
class Refused:
    """Why there is no cache to continue from: the beginning of a sentence, without a full stop."""

    reason: str


class Vault:
    """The caches below one folder, which has a folder for each conversation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(
        self,
        conversation_id: str,
        cache: list[Any],
        tokens: Sequence[int],
        *,
        fingerprint: str,
        scheme: str,
        model: str = "",
        rounding: tuple[int, int] = (16, 16),
    ) -> int:
        """Write a conversation's cache; the bytes that it takes on disk.

        The snapshot goes under a name of its own; the manifest that names it is replaced last, in one step.
        Whenever the process is killed, the old pair or the new pair is there, whole.

        Raises:
            VaultError: if it cannot be written. What was saved before is then untouched.
        """
        folder = self._folder(conversation_id)
        try:
            make_private_folder(self.folder)
            make_private_folder(folder)
            snapshot = _write_snapshot(folder, cache)
            manifest = {
                "format": FORMAT,
                "codec": _codec_version(),
                "mlx_lm": metadata.version("mlx-lm"),
                "fingerprint": fingerprint,
                "model": model,
                "scheme": scheme,
                "layout": _layout(cache),
                "rounding": list(rounding),
                "tokens": list(tokens),
                "snapshot": snapshot.name,
                "bytes": snapshot.stat().st_size,
                "sha256": _sha256(snapshot),
                "saved_at": time.time(),
            }
            content = json.dumps(manifest | {"digest": _digest(manifest)}).encode()
            write_atomically(folder / MANIFEST, content)
            _sync_folder(folder)
        except (UnusableFolder, OSError, RuntimeError) as error:
            _remove_leftovers(folder)
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise VaultError(
                f"The cache could not be saved ({reason}); the chat goes on, "
                "and the conversation is read again after the next start."
            ) from error
        _remove_leftovers(folder)
        return len(content) + int(snapshot.stat().st_size)

    def load(self, conversation_id: str, *, fingerprint: str, scheme: str) -> Restored | Refused | None:
        """Bring a conversation's cache back, evaluated.

        Args:
            fingerprint: Of the model that is to continue from it.
            scheme: The one that the conversation is under now.

        Returns:
            The cache; or why the one on disk cannot be used; or ``None`` if none was saved.
        """
        try:
            folder = self._folder(conversation_id)
            if not (folder / MANIFEST).exists():
                return None
            manifest = _read_manifest(folder / MANIFEST)
            if (reason := _mismatch(manifest, fingerprint, scheme)) is not None:
                return Refused(reason)
            return _read_snapshot(folder, manifest)
        except TqchatError as error:
            return Refused(str(error).rstrip("."))
        except OSError as error:
            return Refused(f"The saved cache cannot be read ({error.strerror or error})")
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
            return Refused(f"The saved cache is damaged ({type(error).__name__})")

    def scheme(self, conversation_id: str) -> str | None:
        """The scheme of a saved cache, ``None`` if none was saved or its manifest cannot be read."""
        try:
            return str(_read_manifest(self._folder(conversation_id) / MANIFEST)["scheme"])
        except (TqchatError, OSError, KeyError, ValueError):
            return None

    def forget(self, conversation_id: str) -> None:
        """Remove a conversation's cache from disk.

        Raises:
            VaultError: if it is there and stays there.
        """
        folder = self._folder(conversation_id)
        try:
            # Without its manifest a snapshot is nothing, whatever happens next.
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise VaultError(
                f"The cache in {folder} could not be removed: {error.strerror or error}."
            ) from error

    def size(self, conversation_id: str) -> int:
        """Bytes that a conversation's cache takes on disk."""
        total = 0
        try:
            for path in self._folder(conversation_id).iterdir():
                total += path.stat().st_size
        except OSError:
            pass  # not saved, or being replaced this moment
        return total

    def _folder(self, conversation_id: str) -> Path:
        if not _ID.fullmatch(conversation_id):
            raise VaultError(f"{conversation_id!r} cannot be the id of a conversation.")
        return self.folder / conversation_id


def _write_snapshot(folder: Path, cache: list[Any]) -> Path:
    from tqchat import kv

    stem = uuid.uuid4().hex
    # MLX appends ".safetensors" to names that lack it, so the temporary one has it too.
    temporary = folder / f"{_TEMPORARY}{stem}.safetensors"
    final = folder / f"{stem}.safetensors"
    try:
        # Made first, so that it is never readable by others, not even while it grows.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        kv.save(temporary, cache)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if not _is_whole(temporary):
            raise OSError("it was written only in part")
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return final


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says: a full disk need not be reported to MLX."""
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            return False
        length = struct.unpack("<Q", prefix)[0]
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return bool(path.stat().st_size == 8 + length + max(ends, default=0))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
        digest = manifest.pop("digest")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VaultError("The saved cache has a damaged manifest") from error
    if digest != _digest(manifest):
        raise VaultError("The saved cache has a damaged manifest")
    return dict(manifest)


def _mismatch(manifest: dict[str, Any], fingerprint: str, scheme: str) -> str | None:
    if manifest["format"] != FORMAT or manifest["codec"] != _codec_version():
        return "The saved cache was written by another version of tqchat"
    if manifest["mlx_lm"] != metadata.version("mlx-lm"):
        return f"The saved cache was made under mlx-lm {manifest['mlx_lm']}, and this is another version"
    if manifest["fingerprint"] != fingerprint:
        made = f" ({manifest['model']})" if manifest["model"] else ""
        return f"The saved cache was made with another model, or another version of it{made}"
    if manifest["scheme"] != scheme:
        return f"The saved cache is under {manifest['scheme']}, and this conversation under {scheme}"
    return None


def _read_snapshot(folder: Path, manifest: dict[str, Any]) -> Restored | Refused:
    from tqchat import kv

    name = str(manifest["snapshot"])
    path = folder / name
    if Path(name).name != name or not path.is_file():
        return Refused("The saved cache is incomplete (its snapshot is missing)")
    if path.stat().st_size != manifest["bytes"] or _sha256(path) != manifest["sha256"]:
        return Refused("The saved cache is damaged (its checksum does not match)")
    cache, _ = kv.load(path)
    if _layout(cache) != manifest["layout"]:
        return Refused("The saved cache is damaged (its layers are not those that were saved)")
    keys, values = manifest["rounding"]
    return Restored(cache, [int(token) for token in manifest["tokens"]], (int(keys), int(values)))


def _layout(cache: list[Any]) -> list[list[Any]]:
    """Kinds and shapes of a cache's layers."""
    from tqchat import kv

    layers = kv.memory_report(cache).layers
    return [[layer.kind, layer.scheme, layer.heads, layer.key_dim, layer.value_dim] for layer in layers]


def _codec_version() -> int:
    from tqchat.kv.snapshot import CODEC_VERSION

    return CODEC_VERSION


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Remove snapshots that the manifest does not name; another process's unfinished one is left alone."""
    try:
        named = _read_manifest(folder / MANIFEST)["snapshot"]
    except (VaultError, OSError, KeyError):
        named = None
    try:
        for path in folder.glob("*.safetensors"):
            fresh = path.name.startswith(_TEMPORARY) and time.time() - path.stat().st_mtime < _STALE_SECONDS
            if path.name != named and not fresh:
                path.unlink(missing_ok=True)
    except OSError:
        pass  # they cost room, nothing else; the next save tries again
