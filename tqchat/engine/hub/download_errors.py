"""Download errors, as sentences for the user."""

from __future__ import annotations

from typing import Any

from tqchat.errors import TqchatError


class DownloadFailed(TqchatError):
    """The model could not be fetched."""


class DownloadCancelled(TqchatError):
    """Cancelled by the user. The received part stays on disk and the next download resumes it."""

    def __init__(self, repo: str) -> None:
        super().__init__(
            f"The download of {repo} was cancelled; asked for again, it resumes where it stopped."
        )


def http_error() -> type[Exception]:
    """Base class of HTTP errors; it depends on the HTTP client of the installed huggingface_hub."""
    from huggingface_hub.errors import HfHubHTTPError

    base: Any = HfHubHTTPError.__mro__[1]
    return base  # type: ignore[no-any-return]


def is_transient(error: Exception) -> bool:
    """Whether a retry may help: no answer, a timeout, rate limiting or a server error."""
    status = _status(error)
    return status in (0, 408, 429) or status >= 500


def _status(error: BaseException) -> int:
    """HTTP status of an error, 0 without an answer."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def describe(repo: str, error: BaseException) -> TqchatError:
    """An error of huggingface_hub, HTTP or the disk as a ``DownloadFailed``."""
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
