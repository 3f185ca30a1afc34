"""Models from the Hugging Face hub: found in its local cache, or fetched into it."""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from tqchat.engine.hub import model_folder
from tqchat.errors import TqchatError
from tqchat.files import write_atomically

Progress = Callable[[int, int], None]
"""Called with the bytes there and the bytes in all."""

WANTED = (
    "*.json",
    model_folder.WEIGHT_PATTERN,
    "*.jinja",
    "tokenizer.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
)
"""What is fetched: weights as safetensors, tables and tokenizers. Never code."""

UNFINISHED = ".tqchat.incomplete"
"""How the file of a blob that is still arriving ends."""

_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_RETRIES = 4
_TIMEOUT = 15.0


class DownloadFailed(TqchatError):
    """The model could not be fetched."""


class DownloadCancelled(TqchatError):
    """The person ended the download. What had arrived stays and is resumed next time."""

    def __init__(self, repo: str) -> None:
        super().__init__(
            f"The download of {repo} was cancelled; asked for again, it resumes where it stopped."
        )


@dataclass(frozen=True)
class _File:
    name: str
    size: int
    etag: str
    sha256: str | None


def cached(repo: str) -> Path | None:
    """The folder of a model that the hub's cache holds whole, without asking the network."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        model_folder.check(folder)
    except model_folder.NeedsCustomCode:
        return folder
    except model_folder.NotAModel:
        return None
    return folder


def repos() -> list[tuple[str, Path]]:
    """The models in the hub's cache, whole or not, with the folder that keeps each, by name."""
    from huggingface_hub import constants

    found = []
    for storage in Path(constants.HF_HUB_CACHE).glob("models--*"):
        match storage.name.split("--")[1:]:  # the hub forbids the two dashes in names
            case [owner, name] if owner and name:
                found.append((f"{owner}/{name}", storage))
    return sorted(found, key=lambda one: one[0].lower())


def arrived(storage: Path) -> int:
    """Bytes that are there of a download of ours that was not finished; 0 if there is none."""
    blobs = list((storage / "blobs").glob("*"))
    if not any(blob.name.endswith(UNFINISHED) for blob in blobs):
        return 0
    return sum(blob.stat().st_size for blob in blobs if blob.is_file())


def discard(repo: str) -> None:
    """Throw away what has arrived of a download that was not finished.

    Raises:
        DownloadFailed: if it cannot be removed.
    """
    storage = next((place for name, place in repos() if name == repo), None)
    if storage is None or not arrived(storage):
        return
    try:
        if any((storage / "refs").glob("*")):  # another program keeps a version of it here: only ours goes
            for file in (storage / "blobs").glob(f"*{UNFINISHED}"):
                file.unlink(missing_ok=True)
        else:
            shutil.rmtree(storage)
    except OSError as error:
        raise DownloadFailed(f"What is there of {repo} cannot be removed ({error.strerror}).") from error


def download(repo: str, progress: Progress, cancelled: Callable[[], bool]) -> Path:
    """Fetch a model into the hub's cache and return its folder there.

    A weight file grows in a file of its own beside the cache's blobs, so a cut connection, a cancelled
    download or a killed process goes on where it stopped. Weights are checked against the hub's checksums.

    Args:
        repo: ``owner/name``.
        progress: Told at least once, and after each piece that arrives.
        cancelled: Asked between pieces.

    Raises:
        DownloadFailed: in words for the person.
        DownloadCancelled: if ``cancelled()`` said so.
    """
    try:
        commit, files = _listing(repo)
        return _fetch_all(repo, commit, files, progress, cancelled)
    except (_http_error(), OSError, ValueError) as error:
        raise _explained(repo, error) from error


def _listing(repo: str) -> tuple[str, list[_File]]:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        disable_progress_bars,
        logging,
    )

    # The screen belongs to the application.
    disable_progress_bars()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    info = HfApi().model_info(repo, files_metadata=True, timeout=_TIMEOUT)
    files = []
    for sibling in info.siblings or ():
        name = sibling.rfilename
        if "/" in name or not any(fnmatch.fnmatchcase(name, pattern) for pattern in WANTED):
            continue
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        files.append(_File(name, sibling.size or 0, sha256 or sibling.blob_id or "", sha256))
    names = {file.name for file in files}
    if "config.json" not in names:
        raise DownloadFailed(f"{repo} is no model that tqchat can load: it has no config.json.")
    if not any(fnmatch.fnmatchcase(name, model_folder.WEIGHT_PATTERN) for name in names):
        raise DownloadFailed(
            f"{repo} has no weights that tqchat can load ({model_folder.WEIGHT_PATTERN}); "
            "look for an MLX or safetensors version of it."
        )
    # These become file names: a hub that sends anything else is not to be trusted with them.
    commit = info.sha or ""
    hashes = [commit, *(file.sha256 for file in files if file.sha256)]
    if not all(_HASH.fullmatch(text) for text in hashes):
        raise DownloadFailed(f"The hub does not say which version of {repo} it has; try again later.")
    return commit, files


def _fetch_all(
    repo: str, commit: str, files: list[_File], progress: Progress, cancelled: Callable[[], bool]
) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.file_download import repo_folder_name

    storage = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    snapshot = storage / "snapshots" / commit
    total = sum(file.size for file in files)
    done = sum(file.size for file in files if (snapshot / file.name).exists())
    missing = [file for file in files if not (snapshot / file.name).exists()]
    partials = {file.name: storage / "blobs" / f"{file.etag}{UNFINISHED}" for file in missing}
    arrived = sum(path.stat().st_size for path in partials.values() if path.exists())
    _check_room(repo, storage, total - done - arrived)
    progress(done, total)
    # The smallest first: config and tokenizer are there when the weights are.
    for file in sorted(missing, key=lambda file: file.size):
        if cancelled():
            raise DownloadCancelled(repo)
        if file.sha256 and not (storage / "blobs" / file.etag).exists():
            report = partial(_add_to, progress, done, total)
            _fetch(repo, commit, file, partials[file.name], report, cancelled)
        # Fetches a small file; a blob that is there by now is only linked into the snapshot.
        hf_hub_download(repo, file.name, revision=commit, etag_timeout=_TIMEOUT)
        done += file.size
        progress(done, total)
    # The name `main` is what makes the model findable offline: given last, it stands for a whole one.
    (storage / "refs").mkdir(parents=True, exist_ok=True)
    write_atomically(storage / "refs" / "main", commit.encode())
    return snapshot


def _add_to(progress: Progress, done: int, total: int, more: int) -> None:
    progress(done + more, total)


def _fetch(
    repo: str,
    commit: str,
    file: _File,
    unfinished: Path,
    progress: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Bring one large file into the cache's blobs, going on from what is there of it."""
    blob = unfinished.parent / file.etag
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    with unfinished.open("ab") as out:
        _lock(out, repo, cancelled)
        if blob.exists():  # another process was at it, and is done
            return
        out.seek(0, os.SEEK_END)
        failures = 0
        while (have := out.tell()) < file.size:
            try:
                _stream(repo, commit, file, out, progress, cancelled)
            except _http_error() as error:
                failures = 0 if out.tell() > have else failures + 1
                if failures > _RETRIES or not _may_pass(error):
                    raise
                _wait(failures, cancelled)
            else:
                failures = 0 if out.tell() > have else failures + 1
                if failures > _RETRIES:
                    raise DownloadFailed(f"The hub sends nothing of {file.name} any more; try again later.")
            if cancelled():
                raise DownloadCancelled(repo)
        out.flush()
        os.fsync(out.fileno())
        if unfinished.stat().st_size != file.size or _sha256(unfinished) != file.sha256:
            unfinished.unlink()
            raise DownloadFailed(f"{file.name} of {repo} arrived damaged and was thrown away; try again.")
        unfinished.replace(blob)


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
    file: _File,
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
    with session.stream("GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if have and response.status_code != 206:  # the server does not resume: from the start, then
            out.seek(0)
            out.truncate()
        progress(out.tell())
        for (
            chunk
        ) in response.iter_bytes():  # as they arrive: a chunk being gathered would be lost with the line
            if cancelled():
                return
            out.write(chunk)
            progress(out.tell())


def _http_error() -> type[Exception]:
    """What the hub's HTTP client raises; which client that is depends on the hub library's version."""
    from huggingface_hub.errors import HfHubHTTPError

    base: Any = HfHubHTTPError.__mro__[1]
    return base  # type: ignore[no-any-return]


def _may_pass(error: Exception) -> bool:
    """Whether trying again may help: the connection broke, or the server is in trouble."""
    status = _status(error)
    return status in (0, 408, 429) or status >= 500


def _status(error: BaseException) -> int:
    """The HTTP status that an error is about, 0 if there was no answer."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _wait(failures: int, cancelled: Callable[[], bool]) -> None:
    deadline = time.monotonic() + min(0.5 * 2**failures, 8)
    while time.monotonic() < deadline and not cancelled():
        time.sleep(0.05)


def _check_room(repo: str, storage: Path, needed: int) -> None:
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


def _explained(repo: str, error: BaseException) -> TqchatError:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if isinstance(error, TqchatError):
        return error
    if isinstance(error, GatedRepoError):
        return DownloadFailed(
            f"{repo} wants its licence accepted first: open {constants.ENDPOINT}/{repo} in a browser, "
            "accept it, then run `hf auth login` and try again."
        )
    if isinstance(error, RepositoryNotFoundError) or _status(error) in (401, 404):
        return DownloadFailed(
            f"There is no model {repo} on Hugging Face that you may see: check the name, "
            "or run `hf auth login` if it is private."
        )
    if isinstance(error, HFValidationError):
        return DownloadFailed(f"{repo!r} is no Hugging Face model id; one looks like owner/name.")
    if isinstance(error, OfflineModeIsEnabled):
        return DownloadFailed(
            f"{repo} is not on this machine and offline mode is on (HF_HUB_OFFLINE); "
            "turn it off or choose another model."
        )
    if _status(error):
        return DownloadFailed(f"Hugging Face answers {_status(error)} for {repo}; try again later.")
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return DownloadFailed(f"{repo} cannot be stored ({error.strerror}): see to the disk and try again.")
    if isinstance(error, (LocalEntryNotFoundError, OSError)) or not isinstance(error, ValueError):
        return DownloadFailed(
            f"{repo} is not (wholly) on this machine and Hugging Face cannot be reached: "
            "check the connection, or choose a model folder."
        )
    return DownloadFailed(f"{repo} could not be fetched: {error}.")
