"""The files of a model on the Hugging Face hub, read before anything is downloaded."""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import dataclass
from typing import Any

from tqchat.engine.hub import loadable, model_folder
from tqchat.engine.hub.model_errors import UnsupportedModel
from tqchat.engine.hub.remote import network
from tqchat.engine.hub.remote.download_errors import DownloadFailed
from tqchat.engine.hub.remote.transport import Hub
from tqchat.files import is_nested_deeply

DOWNLOAD_PATTERNS = (
    "*.json",
    model_folder.WEIGHT_PATTERN,
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
)
"""Files to download: safetensors weights, configuration and tokenizers. Never code."""

TEMPLATES_FOLDER = "additional_chat_templates"
"""The only folder of a repo whose files are downloaded."""

MAX_CONFIG_BYTES = 16 << 20
_MAX_FILE_BYTES = 1 << 50
_MAX_LICENCE_CHARS = 60
_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]{0,199}", re.ASCII)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repo.

    Attributes:
        size: In bytes; ``None`` if the hub does not list it, as some mirrors.
        etag: Name of its blob in the cache; empty if the hub lists no hash.
        sha256: Known for large files only.
    """

    name: str
    size: int | None
    etag: str
    sha256: str | None

    @property
    def is_weights(self) -> bool:
        """Whether it holds weights."""
        return fnmatch.fnmatchcase(self.name, model_folder.WEIGHT_PATTERN)


@dataclass(frozen=True)
class Listing:
    """A version of a repo whose model tqchat can load.

    Attributes:
        files: Those to download.
        config: Its ``config.json``.
        licence: As the repo states it; empty if it states none.
    """

    commit: str
    files: list[RemoteFile]
    config: dict[str, Any]
    licence: str

    @property
    def bytes(self) -> int | None:
        """Bytes of all files; ``None`` if the hub does not list all sizes."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)


def list_files(hub: Hub, repo: str, limit: int | None = None) -> Listing:
    """The files of a repo, checked to be a model that tqchat can load.

    Reads the configuration of the model and of its tokenizer, not its weights.

    Raises:
        DownloadFailed, NotAModel, NeedsCustomCode, UnsupportedModel: if it is not.
    """
    table = hub.listing(limit)
    siblings = table.get("siblings") if isinstance(table, dict) else None
    if not isinstance(siblings, list):
        raise network.portal(repo)
    names = {str(one.get("rfilename")) for one in siblings if isinstance(one, dict)}
    files = [file for one in siblings if isinstance(one, dict) and (file := _file(repo, one)) is not None]
    commit = table.get("sha")
    # It becomes a folder's name, so nothing but a hash is accepted.
    if not isinstance(commit, str) or not _HASH.fullmatch(commit):
        raise _no_version(repo)
    if "config.json" not in names:
        if not any(name.endswith(".safetensors") and "adapter" not in name for name in names):
            loadable.check_weight_names(repo, names)
        raise DownloadFailed(f"{repo} is no model that tqchat can load: it has no config.json.")
    loadable.check_weight_names(repo, names)
    return Listing(commit, files, _checked_config(hub, repo, commit, names), _licence(table))


def _licence(table: dict[str, Any]) -> str:
    card = table.get("cardData")
    stated = card.get("license") if isinstance(card, dict) else None
    if not isinstance(stated, str):
        tags = table.get("tags")
        texts = (tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ()
        stated = next((tag.removeprefix("license:") for tag in texts if tag.startswith("license:")), "")
    return stated[:_MAX_LICENCE_CHARS]


def _checked_config(hub: Hub, repo: str, commit: str, names: set[str]) -> dict[str, Any]:
    def read(name: str) -> dict[str, Any] | None:
        if name not in names:
            return None
        try:
            table = json.loads(hub.read(commit, name, MAX_CONFIG_BYTES))
        except (ValueError, RecursionError):
            table = None
        if not isinstance(table, dict):
            raise UnsupportedModel(f"{name} of {repo} is no JSON table; choose another version of the model.")
        if is_nested_deeply(table):
            raise UnsupportedModel(f"{name} of {repo} is nested too deeply; choose another model.")
        return table

    config = read("config.json") or {}
    loadable.check(
        repo,
        config,
        read("tokenizer_config.json") or {},
        quant_config=read("hf_quant_config.json"),
    )
    if not any(name in names for name in model_folder.TOKENIZER_FILES):
        raise UnsupportedModel(
            f"{repo} has no tokenizer that tqchat can load ({', '.join(model_folder.TOKENIZER_FILES)}); "
            f"{loadable.instead_of(repo)}."
        )
    return config


def _file(repo: str, row: dict[str, Any]) -> RemoteFile | None:
    """A file of the listing, ``None`` if it is not needed.

    Raises:
        DownloadFailed: if its size or hash is none.
    """
    name = row.get("rfilename")
    if not isinstance(name, str) or not _is_wanted(name):
        return None
    lfs = row.get("lfs")
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else None
    size = row.get("size", lfs.get("size") if isinstance(lfs, dict) else None)
    etag = sha256 or row.get("blobId") or ""
    # Hashes become file names.
    if etag and not (isinstance(etag, str) and _HASH.fullmatch(etag)):
        raise _no_version(repo)
    if size is not None and (type(size) is not int or not 0 <= size < _MAX_FILE_BYTES):
        raise _no_version(repo)
    return RemoteFile(name, size, etag, sha256 if sha256 and len(sha256) == 64 else None)


def _is_wanted(name: str) -> bool:
    folder, _, base = name.rpartition("/")
    if not _NAME.fullmatch(base):
        return False
    if folder:
        return folder == TEMPLATES_FOLDER and base.endswith(".jinja")
    return any(fnmatch.fnmatchcase(base, pattern) for pattern in DOWNLOAD_PATTERNS)


def _no_version(repo: str) -> DownloadFailed:
    return DownloadFailed(f"The hub does not say which version of {repo} it has; try again later.")
