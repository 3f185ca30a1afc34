"""Download errors, as sentences for the user."""

from __future__ import annotations

import errno
from typing import Any

from tqchat.errors import TqchatError
from tqchat.text import one_line


class DownloadFailed(TqchatError):
    """The model could not be fetched."""


class DownloadCancelled(TqchatError):
    """Cancelled by the user. The received part stays on disk and the next download resumes it."""

    def __init__(self, repo: str) -> None:
        super().__init__(
            f"The download of {repo} was cancelled; asked for again, it resumes where it stopped."
        )


class HubAnswer(Exception):
    """The hub answered with an error.

    Attributes:
        code, message: Its ``X-Error-Code`` and ``X-Error-Message``.
        retry_after: Seconds that it asks to wait.
        token_source: Variable or file of the token that was sent; empty if none was.
        refused_without_token: Status of the same request without the token, 0 if there was none.
    """

    def __init__(
        self,
        status: int,
        code: str = "",
        message: str = "",
        retry_after: float | None = None,
        token_source: str = "",
    ) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.token_source = token_source
        self.refused_without_token = 0


def http_error() -> type[Exception]:
    """Base class of HTTP errors; it depends on the HTTP client of the installed huggingface_hub."""
    from huggingface_hub.errors import HfHubHTTPError

    base: Any = HfHubHTTPError.__mro__[1]
    return base  # type: ignore[no-any-return]


def describe(repo: str, error: BaseException) -> TqchatError:
    """An error of the hub, the connection or the disk as a ``DownloadFailed``."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    from tqchat.engine.hub.remote import network

    if isinstance(error, TqchatError):
        return error
    if isinstance(error, HubAnswer):
        return _describe_answer(repo, error)
    if isinstance(error, HFValidationError):
        return DownloadFailed(f"{repo!r} is no Hugging Face model id; one looks like owner/name.")
    if isinstance(error, OfflineModeIsEnabled):
        return DownloadFailed(
            f"{repo} is not on this machine and offline mode is on (HF_HUB_OFFLINE); "
            "turn it off or choose another model."
        )
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DownloadFailed(f"The disk of {constants.HF_HUB_CACHE} is full; free some and try again.")
        return DownloadFailed(
            f"{repo} cannot be stored in {constants.HF_HUB_CACHE} ({reason}): "
            "set HF_HUB_CACHE to a folder that can be written to."
        )
    if isinstance(error, ValueError):
        return DownloadFailed(f"{repo} could not be fetched: {one_line(str(error)).rstrip('.')}.")
    return network.describe(repo, error)


def _describe_answer(repo: str, answer: HubAnswer) -> DownloadFailed:
    from huggingface_hub import constants

    from tqchat.engine.hub.remote import network
    from tqchat.engine.hub.remote.network import TOKENS_PAGE

    page = f"{constants.ENDPOINT}/{repo}"
    source = answer.token_source
    if answer.code == "GatedRepo":
        then = f" with the account of the token in {source}" if source else ", then run `hf auth login`"
        return DownloadFailed(
            f"{repo} wants its licence accepted first: open {page} in a browser, "
            f"accept it{then} and try again."
        )
    if answer.status in (401, 403) and source:
        said = f" ({one_line(answer.message)})" if answer.message else ""
        if answer.status == 403:
            return DownloadFailed(
                f"The token in {source} does not give access to {repo}{said}: give it the right to read this "
                f"repository at {TOKENS_PAGE}, or accept its licence at {page}."
            )
        return DownloadFailed(
            f"The token in {source} was refused{said}, and without one {repo} cannot be read: "
            f"make a new token at {TOKENS_PAGE}, or check the name."
        )
    if answer.code == "RepoNotFound" or answer.status in (401, 404):
        if answer.code in ("EntryNotFound", "RevisionNotFound"):
            return DownloadFailed(f"{repo} has just been changed on the hub; try again.")
        return DownloadFailed(
            f"There is no model {repo} on Hugging Face that you may see: check the name, "
            "or run `hf auth login` if it is private."
        )
    if answer.status == 403:
        return DownloadFailed(
            f"Hugging Face does not give {repo} to someone who is not logged in (403): run `hf auth login`, "
            f"and look at {page} for what it asks."
        )
    if answer.status == 429:
        wait = f"in {_duration(answer.retry_after)}" if answer.retry_after is not None else "in some minutes"
        login = "" if source else "; after `hf auth login` it allows more"
        return DownloadFailed(
            f"Hugging Face limits the number of requests (429): try {repo} again {wait}{login}."
        )
    if answer.status == 511:
        return network.portal(repo)
    if answer.status == 407:
        return DownloadFailed(
            "The proxy wants a user name and a password (407): write them into HTTPS_PROXY as "
            "http://user:password@host:port."
        )
    return DownloadFailed(f"Hugging Face answers {answer.status} for {repo}; try again later.")


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 120 else f"{round(seconds / 60)} minutes"
