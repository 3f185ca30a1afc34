"""Resumable download of a model into the local Hugging Face cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from tqchat.engine.hub import local_cache
from tqchat.engine.hub.local_cache import PARTIAL_SUFFIX
from tqchat.engine.hub.remote import network
from tqchat.engine.hub.remote.download_errors import (
    DownloadCancelled,
    DownloadFailed,
    HubAnswer,
    describe,
    http_error,
)
from tqchat.engine.hub.remote.listing import RemoteFile, list_files
from tqchat.engine.hub.remote.transport import Hub
from tqchat.errors import TqchatError
from tqchat.files import write_atomically
from tqchat.units import size

Progress = Callable[[int, int], None]
"""Called with the bytes received and the total."""

_MAX_RETRIES = 4
_MAX_UNLISTED_BYTES = 64 << 20
"""Longest configuration or tokenizer file whose size the hub does not list."""

_SPACE_CHECK_BYTES = 64 << 20
"""Interval of free-space checks, and the least free space."""

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-")


def download(repo: str, progress: Progress, cancelled: Callable[[], bool]) -> Path:
    """Download a model into the Hugging Face cache and return its folder there.

    A model that cannot be loaded is refused before its weights are requested. A file is written to a partial
    file beside the cache's blobs, so that a broken connection, a cancelled download or a killed process is
    resumed. Every file is verified by the hash that the hub gives, SHA-256 or git's.

    Args:
        repo: ``owner/name``.
        progress: Called at least once, and after each chunk.
        cancelled: Checked between chunks.

    Raises:
        TqchatError: with a sentence for the user; ``DownloadCancelled`` if ``cancelled()`` returned true.
    """
    try:
        hub = Hub(repo, cancelled)
        found = list_files(hub, repo)
        return _Transfer(hub, repo, found.commit, progress, cancelled).run(found.files)
    except DownloadCancelled:
        raise
    except (http_error(), HubAnswer, OSError, ValueError) as error:
        raise _with_remainder(repo, describe(repo, error)) from error
    except Exception as error:
        if isinstance(error, DownloadFailed) or network.is_client_error(error):
            raise _with_remainder(repo, describe(repo, error)) from error
        raise


def _with_remainder(repo: str, error: TqchatError) -> TqchatError:
    """The error, with what is kept for the next download."""
    try:
        kept = local_cache.partial_bytes(local_cache.storage_folder(repo))
    except OSError:
        kept = 0
    if not kept:
        return error
    return DownloadFailed(
        f"{error} What has arrived ({size(kept)}) is kept, and the next download resumes it."
    )


class _Transfer:
    """The download of one version of a repo."""

    def __init__(
        self, hub: Hub, repo: str, commit: str, progress: Progress, cancelled: Callable[[], bool]
    ) -> None:
        self._hub = hub
        self._repo = repo
        self._commit = commit
        self._progress = progress
        self._cancelled = cancelled
        self._storage = local_cache.storage_folder(repo)
        self._blobs = self._storage / "blobs"
        self._snapshot = self._storage / "snapshots" / commit

    def run(self, files: list[RemoteFile]) -> Path:
        """Download what is missing; returns the snapshot's folder."""
        missing = [file for file in files if not self._is_there(self._snapshot / file.name, file)]
        total = sum(file.size or 0 for file in files)
        done = total - sum(file.size or 0 for file in missing)
        partials = (self._partial(file) for file in missing)
        received = sum(path.stat().st_size for path in partials if path.is_file())
        _check_disk_space(self._repo, self._storage, total - done - received)
        self._progress(min(done + received, total), total)
        # Smallest first: config and tokenizer come before the weights.
        for file in sorted(missing, key=lambda file: (file.is_weights, file.size or 0)):
            if self._cancelled():
                raise DownloadCancelled(self._repo)
            blob = self._blobs / self._blob_name(file)
            if not self._is_there(blob, file):
                self._download_blob(file, blob, partial(self._report, done, total))
            _link(blob, self._snapshot / file.name)
            done += file.size or 0
            self._progress(done, total)
        # `refs/main` makes the model findable by other programs. Written last, so that it implies a complete
        # snapshot.
        (self._storage / "refs").mkdir(parents=True, exist_ok=True)
        write_atomically(self._storage / "refs" / "main", self._commit.encode())
        return self._snapshot

    def _report(self, done: int, total: int, more: int) -> None:
        self._progress(done + more, max(total, done + more))

    def _is_there(self, path: Path, file: RemoteFile) -> bool:
        if not path.is_file() or (file.size is not None and path.stat().st_size != file.size):
            return False
        # Weights were verified when they arrived; hashing them at every start would take too long.
        return file.is_weights or _matches_git_hash(file, path)

    def _blob_name(self, file: RemoteFile) -> str:
        return file.etag or hashlib.sha256(f"{self._commit}/{file.name}".encode()).hexdigest()

    def _partial(self, file: RemoteFile) -> Path:
        return self._blobs / f"{self._blob_name(file)}{PARTIAL_SUFFIX}"

    def _download_blob(self, file: RemoteFile, blob: Path, progress: Callable[[int], None]) -> None:
        """Download one file into the cache's blobs, resuming its partial file."""
        partial_file = self._partial(file)
        partial_file.parent.mkdir(parents=True, exist_ok=True)
        with _open_partial(partial_file) as out:
            _lock(out, self._repo, self._cancelled)
            if self._is_there(blob, file):  # another process has completed it
                return
            out.seek(0, os.SEEK_END)
            try:
                self._receive(file, out, progress)
                out.flush()
                os.fsync(out.fileno())
                self._verify(file, partial_file)
            except _Rejected as error:
                partial_file.unlink(missing_ok=True)
                raise DownloadFailed(str(error)) from None
            partial_file.replace(blob)

    def _receive(self, file: RemoteFile, out: IO[bytes], progress: Callable[[int], None]) -> None:
        if file.size is not None and out.tell() > file.size:
            out.truncate(0)
            out.seek(0)
        failures = 0
        complete = file.size is not None and out.tell() == file.size
        while not complete:
            have = out.tell()
            try:
                complete = self._stream(file, out, progress)
            except (http_error(), HubAnswer) as error:
                failures = 0 if out.tell() > have else failures + 1
                self._hub.wait_or_raise(error, failures, _MAX_RETRIES)
            else:
                failures = 0 if out.tell() > have else failures + 1
                if not complete and failures > _MAX_RETRIES:
                    raise DownloadFailed(f"The hub sends nothing of {file.name} any more; try again later.")
            if self._cancelled():
                raise DownloadCancelled(self._repo)

    def _stream(self, file: RemoteFile, out: IO[bytes], progress: Callable[[int], None]) -> bool:
        """Append what one request brings; whether the file is complete."""
        have = out.tell()
        with self._hub.stream(self._commit, file.name, have) as response:
            if have and not _continues_at(response, have):
                out.seek(0)
                out.truncate()
            self._check_type(file, response)
            limit = self._limit(file, response, out.tell())
            progress(out.tell())
            looked_at = out.tell()
            # No chunk size: a partly filled chunk would be lost if the connection breaks.
            for chunk in response.iter_bytes():
                if self._cancelled():
                    return False
                if out.tell() + len(chunk) > limit:
                    raise _Rejected(
                        f"The hub sends more of {file.name} than it says that there is ({limit:,} bytes); "
                        "nothing of it was kept, check HF_ENDPOINT."
                    )
                out.write(chunk)
                progress(out.tell())
                if out.tell() - looked_at >= _SPACE_CHECK_BYTES:
                    looked_at = out.tell()
                    _check_disk_space(self._repo, self._storage, _SPACE_CHECK_BYTES)
        return out.tell() == file.size if file.size is not None else True

    def _limit(self, file: RemoteFile, response: Any, have: int) -> int:
        """Bytes that the file may have at most."""
        if file.size is not None:
            return file.size
        length = str(response.headers.get("Content-Length", ""))
        if length.isdecimal() and len(length) < 16:
            _check_disk_space(self._repo, self._storage, int(length))
            return have + int(length)
        return have + _free_bytes(self._storage) // 2 if file.is_weights else _MAX_UNLISTED_BYTES

    def _check_type(self, file: RemoteFile, response: Any) -> None:
        if file.is_weights and "text/html" in str(response.headers.get("Content-Type", "")).lower():
            raise network.portal(self._repo)

    def _verify(self, file: RemoteFile, path: Path) -> None:
        size_differs = file.size is not None and path.stat().st_size != file.size
        hash_differs = _sha256(path) != file.sha256 if file.sha256 else not _matches_git_hash(file, path)
        if size_differs or hash_differs:
            raise _Rejected(f"{file.name} of {self._repo} arrived damaged and was deleted; try again.")


class _Rejected(Exception):
    """The received bytes must not be kept."""


def _open_partial(path: Path) -> IO[bytes]:
    # Never through a link or into a device that someone put there.
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    return os.fdopen(descriptor, "ab")


def _continues_at(response: Any, have: int) -> bool:
    if response.status_code != 206:  # the server ignored the range
        return False
    found = _CONTENT_RANGE.match(str(response.headers.get("Content-Range", "")))
    return found is not None and int(found[1]) == have


def _link(blob: Path, place: Path) -> None:
    """Make a snapshot's file a relative link to its blob, or the blob itself where links cannot be made."""
    place.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(blob, place.parent)
    if place.is_symlink() and place.readlink() == Path(target):
        return
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tqchat")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target)
    except OSError:
        shutil.move(blob, temporary)
    temporary.replace(place)


def _lock(file: IO[bytes], repo: str, cancelled: Callable[[], bool]) -> None:
    """Wait until no other download, of this process or another, writes to the file."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if cancelled():
                raise DownloadCancelled(repo) from None
            time.sleep(0.1)
        else:
            return


def _free_bytes(storage: Path) -> int:
    existing = next(folder for folder in (storage, *storage.parents) if folder.exists())
    return shutil.disk_usage(existing).free


def _check_disk_space(repo: str, storage: Path, needed: int) -> None:
    free = _free_bytes(storage)
    if needed > free:
        existing = next(folder for folder in (storage, *storage.parents) if folder.exists())
        raise DownloadFailed(
            f"{repo} needs {size(needed)} and the disk of {existing} has {size(free)} left; "
            "free some and try again."
        )


def _matches_git_hash(file: RemoteFile, path: Path) -> bool:
    """Whether a file has the git hash of the listing. True if the hub gives none.

    A plain SHA-1 of it, which some mirrors give, counts too.
    """
    if file.sha256 or len(file.etag) != 40 or path.stat().st_size > _MAX_UNLISTED_BYTES:
        return True
    content = path.read_bytes()
    as_blob = b"blob %d\0" % len(content) + content
    return file.etag in (hashlib.sha1(as_blob).hexdigest(), hashlib.sha1(content).hexdigest())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
