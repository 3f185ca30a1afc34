"""The files of a model on the Hugging Face hub, read before anything is downloaded."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

from tqchat.engine.hub import model_folder
from tqchat.engine.hub.download_errors import DownloadFailed

TIMEOUT_S = 15.0

DOWNLOAD_PATTERNS = (
    "*.json",
    model_folder.WEIGHT_PATTERN,
    "*.jinja",
    "tokenizer.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
)
"""Files to download: safetensors weights, configuration and tokenizers. Never code."""

_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repo. ``sha256`` is known for large files only."""

    name: str
    size: int
    etag: str
    sha256: str | None


def list_files(repo: str) -> tuple[str, list[RemoteFile]]:
    """Commit of a repo and the files to download, checked to be a model that tqchat can load.

    Raises:
        DownloadFailed: if it is not.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        disable_progress_bars,
        logging,
    )

    # huggingface_hub must not print over the application's screen.
    disable_progress_bars()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    info = HfApi().model_info(repo, files_metadata=True, timeout=TIMEOUT_S)
    files = []
    for sibling in info.siblings or ():
        name = sibling.rfilename
        if "/" in name or not any(fnmatch.fnmatchcase(name, pattern) for pattern in DOWNLOAD_PATTERNS):
            continue
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        files.append(RemoteFile(name, sibling.size or 0, sha256 or sibling.blob_id or "", sha256))
    names = {file.name for file in files}
    if "config.json" not in names:
        raise DownloadFailed(f"{repo} is no model that tqchat can load: it has no config.json.")
    if not any(fnmatch.fnmatchcase(name, model_folder.WEIGHT_PATTERN) for name in names):
        raise DownloadFailed(
            f"{repo} has no weights that tqchat can load ({model_folder.WEIGHT_PATTERN}); "
            "look for an MLX or safetensors version of it."
        )
    # These become file names, so nothing but hashes is accepted.
    commit = info.sha or ""
    hashes = [commit, *(file.sha256 for file in files if file.sha256)]
    if not all(_HASH.fullmatch(text) for text in hashes):
        raise DownloadFailed(f"The hub does not say which version of {repo} it has; try again later.")
    return commit, files
