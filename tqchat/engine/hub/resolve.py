"""From a model's name to its folder on this machine, downloading it if necessary."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tqchat.engine.commands import STARTER, model_ref
from tqchat.engine.hub import local_cache, other_apps
from tqchat.engine.hub.remote import download
from tqchat.errors import TqchatError
from tqchat.paths import bundled, expand_user

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class ModelNotFound(TqchatError):
    """No such model on this machine, and the name is no Hugging Face repo id."""

    exit_code = 2


def local_folder(ref: str | None) -> Path | None:
    """Folder of a model on this machine, ``None`` if it must be downloaded first.

    Args:
        ref: ``None`` or its name for the bundled model, a folder, or a Hugging Face repo id.

    Raises:
        ModelNotFound: if there is no such folder and the name is no repo id either.
    """
    ref = model_ref(ref)
    if ref == STARTER:
        return bundled("starter")
    try:
        folder = expand_user(ref)
        if folder.is_dir():
            return folder.resolve()
        if folder.is_file():
            raise ModelNotFound(f"{ref} is a file; name the folder that holds the model.")
    except (OSError, ValueError):
        pass  # not a path: too long
    if ref.startswith(("/", ".", "~")) or not is_repo_id(ref):
        raise ModelNotFound(
            f"There is no model folder {ref!r}; name a folder, or a Hugging Face model as owner/name."
        )
    return local_cache.cached_folder(ref) or other_apps.model_folder_of(ref)


def is_repo_id(ref: str) -> bool:
    """Whether a name has the form of a repo on the hub: ``owner/name``."""
    return bool(_REPO_ID.fullmatch(ref)) and len(ref) <= 96 and "--" not in ref and ".." not in ref


def resolve(
    ref: str | None,
    progress: download.Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Path:
    """Folder of a model on this machine, downloaded if necessary.

    Raises:
        TqchatError: if the model cannot be found or downloaded; the message is one sentence.
    """
    if (folder := local_folder(ref)) is not None:
        return folder
    assert ref is not None  # the bundled model is always local
    return download.download(ref, progress or (lambda *_: None), cancelled or (lambda: False))
