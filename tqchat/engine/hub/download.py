"""Resumable download of a model into the local Hugging Face cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from tqchat.engine.hub.download_errors import (
    DownloadCancelled,
    DownloadFailed,
    describe,
    http_error,
    is_transient,
)
from tqchat.engine.hub.listing import TIMEOUT_S, RemoteFile, list_files
from tqchat.engine.hub.local_cache import PARTIAL_SUFFIX
from tqchat.files import write_atomically

Progress = Callable[[int, int], None]
"""Called with the bytes received and the total."""

_MAX_RETRIES = 4


def download(repo: str, progress: Progress, cancelled: Callable[[], bool]) -> Path:
    """Download a model into the Hugging Face cache and return its folder there.

    A weight file is written to a partial file beside the cache's blobs, so that a broken connection, a
    cancelled download or a killed process is resumed. Weights are verified by SHA-256.

    Args:
        repo: ``owner/name``.
        progress: Called at least once, and after each chunk.
        cancelled: Checked between chunks.

    Raises:
        DownloadFailed: with a sentence for the user.
        DownloadCancelled: if ``cancelled()`` returned true.
    """
    try:
        commit, files = list_files(repo)
        return _download_missing(repo, commit, files, progress, cancelled)
    except (http_error(), OSError, ValueError) as error:
        raise describe(repo, error) from error


def _download_missing(
    repo: str, commit: str, files: list[RemoteFile], progress: Progress, cancelled: Callable[[], bool]
) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.file_download import repo_folder_name

    storage = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    snapshot = storage / "snapshots" / commit
    total = sum(file.size for file in files)
    done = sum(file.size for file in files if (snapshot / file.name).exists())
    missing = [file for file in files if not (snapshot / file.name).exists()]
    partials = {file.name: storage / "blobs" / f"{file.etag}{PARTIAL_SUFFIX}" for file in missing}
    received = sum(path.stat().st_size for path in partials.values() if path.exists())
    _check_disk_space(repo, storage, total - done - received)
    progress(done, total)
    # Smallest first: config and tokenizer come before the weights.
    for file in sorted(missing, key=lambda file: file.size):
        if cancelled():
            raise DownloadCancelled(repo)
        if file.sha256 and not (storage / "blobs" / file.etag).exists():
            report = partial(_add_to, progress, done, total)
            _download_blob(repo, commit, file, partials[file.name], report, cancelled)
        # Downloads a small file; a blob that exists by now is only linked into the snapshot.
        hf_hub_download(repo, file.name, revision=commit, etag_timeout=TIMEOUT_S)
        done += file.size
        progress(done, total)
    # `refs/main` makes the model findable offline. Written last, so that it implies a complete snapshot.
    (storage / "refs").mkdir(parents=True, exist_ok=True)
    write_atomically(storage / "refs" / "main", commit.encode())
    return snapshot


def _add_to(progress: Progress, done: int, total: int, more: int) -> None:
    progress(done + more, total)


def _download_blob(
    repo: str,
    commit: str,
    file: RemoteFile,
    partial_file: Path,
    progress: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Download one large file into the cache's blobs, resuming its partial file."""
    blob = partial_file.parent / file.etag
    partial_file.parent.mkdir(parents=True, exist_ok=True)
    with partial_file.open("ab") as out:
        _lock(out, repo, cancelled)
        if blob.exists():  # another process has completed it
            return
        out.seek(0, os.SEEK_END)
        failures = 0
        while (have := out.tell()) < file.size:
            try:
                _stream(repo, commit, file, out, progress, cancelled)
            except http_error() as error:
                failures = 0 if out.tell() > have else failures + 1
                if failures > _MAX_RETRIES or not is_transient(error):
                    raise
                _back_off(failures, cancelled)
            else:
                failures = 0 if out.tell() > have else failures + 1
                if failures > _MAX_RETRIES:
                    raise DownloadFailed(f"The hub sends nothing of {file.name} any more; try again later.")
            if cancelled():
                raise DownloadCancelled(repo)
        out.flush()
        os.fsync(out.fileno())
        if partial_file.stat().st_size != file.size or _sha256(partial_file) != file.sha256:
            partial_file.unlink()
            raise DownloadFailed(f"{file.name} of {repo} arrived damaged and was deleted; try again.")
        partial_file.replace(blob)


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


def _stream(
    repo: str,
    commit: str,
    file: RemoteFile,
    out: IO[bytes],
    progress: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> None:
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
    )

    have = out.tell()
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    url = hf_hub_url(repo, file.name, revision=commit)
    session: Any = get_session()
    with session.stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if have and response.status_code != 206:  # the server ignored the range
            out.seek(0)
            out.truncate()
        progress(out.tell())
        # No chunk size: a partly filled chunk would be lost if the connection breaks.
        for chunk in response.iter_bytes():
            if cancelled():
                return
            out.write(chunk)
            progress(out.tell())


def _back_off(failures: int, cancelled: Callable[[], bool]) -> None:
    deadline = time.monotonic() + min(0.5 * 2**failures, 8)
    while time.monotonic() < deadline and not cancelled():
        time.sleep(0.05)


def _check_disk_space(repo: str, storage: Path, needed: int) -> None:
    existing = next(folder for folder in (storage, *storage.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DownloadFailed(
            f"{repo} needs {needed / 1e9:.1f} GB and the disk of {existing} has {free / 1e9:.1f} GB left; "
            "free some and try again."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
