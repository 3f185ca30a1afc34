"""Requests to the hub: the token, what its answers mean, retries."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlencode

from tqchat.engine.hub.remote import network
from tqchat.engine.hub.remote.download_errors import DownloadCancelled, DownloadFailed, HubAnswer, http_error
from tqchat.units import size

TIMEOUT_S = 15.0
MAX_LISTING_BYTES = 64 << 20
MAX_SEARCH_BYTES = 4 << 20
MAX_RETRIES = 3
_MAX_WAIT_S = 60.0
"""A rate limit that lasts longer is reported instead of waited for."""

_PLAIN_ENCODINGS = ("", "identity", "gzip", "deflate")
"""Content encodings that are decoded a little at a time; others may expand without limit."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Hub:
    """Requests for one repo, or for a search.

    The token is left out for good after an answer of 401 or 403 to it that a request without it does not get:
    a token that has expired must not hide a public model.
    """

    def __init__(
        self,
        repo: str,
        cancelled: Callable[[], bool] = lambda: False,
        *,
        timeout_s: float | None = None,
        retries: int = MAX_RETRIES,
    ) -> None:
        """
        Args:
            repo: Its id, or what else is asked for, for sentences.
            timeout_s: Longest time in which the hub must send something; ``TIMEOUT_S`` by default.

        Raises:
            DownloadFailed: if this machine's network settings cannot be used, or offline mode is on.
        """
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise DownloadFailed(
                f"{repo} is not on this machine and offline mode is on (HF_HUB_OFFLINE); "
                "turn it off or choose another model."
            )
        network.check_environment()
        self._token, self._token_source = network.token()
        self._repo = repo
        self._cancelled = cancelled
        self._timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
        self._retries = retries

    def listing(self, limit: int | None = None) -> Any:
        """The hub's description of the repo, decoded from JSON; ``MAX_LISTING_BYTES`` at most by default."""
        url = f"{network.endpoint()}/api/models/{self._repo}?blobs=true"
        return self._read_json(url, limit or MAX_LISTING_BYTES, f"the list of its files of {self._repo}")

    def search(self, **parameters: str | int) -> Any:
        """The hub's answer to a search for models, decoded from JSON."""
        url = f"{network.endpoint()}/api/models?{urlencode(parameters)}"
        return self._read_json(url, MAX_SEARCH_BYTES, "a search")

    def read(self, commit: str, name: str, limit: int) -> bytes:
        """Content of a small file.

        Raises:
            DownloadFailed: if it is longer than ``limit`` bytes.
        """
        return self.retry(lambda: self._read(self._file_url(commit, name), limit, f"{name} of {self._repo}"))

    @contextmanager
    def stream(self, commit: str, name: str, start: int = 0) -> Iterator[Any]:
        """Open a file at an offset; the server may ignore that (status 200)."""
        with self._open(self._file_url(commit, name), start) as response:
            yield response

    def retry(self, request: Callable[[], T]) -> T:
        """Result of a request that is repeated while the failure may be transient."""
        failures = 0
        while True:
            try:
                return request()
            except (http_error(), HubAnswer) as error:
                failures += 1
                self.wait_or_raise(error, failures, self._retries)

    def wait_or_raise(self, error: Exception, failures: int, most: int) -> None:
        """Wait before another try, as long as the hub asks for; raises the error if a try cannot help."""
        wait = retry_after(error)
        if failures > most or not is_transient(error) or (wait or 0) > _MAX_WAIT_S:
            raise error
        back_off(failures if wait is None else wait, wait is None, self._cancelled)
        if self._cancelled():
            raise DownloadCancelled(self._repo)

    def _file_url(self, commit: str, name: str) -> str:
        from huggingface_hub import hf_hub_url

        network.endpoint()
        return str(hf_hub_url(self._repo, name, revision=commit))

    def _read_json(self, url: str, limit: int, what: str) -> Any:
        content = self.retry(lambda: self._read(url, limit, what))
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise network.portal(self._repo) from None

    def _read(self, url: str, limit: int, what: str) -> bytes:
        content = bytearray()
        with self._open(url) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > limit:
                    raise DownloadFailed(
                        f"The hub sends more than {size(limit)} for {what}; nothing of it was kept."
                    )
                if self._cancelled():
                    raise DownloadCancelled(self._repo)
        return bytes(content)

    @contextmanager
    def _open(self, url: str, start: int = 0) -> Iterator[Any]:
        """An answered request.

        Raises:
            HubAnswer: for a status other than 200 and 206.
        """
        with_token: HubAnswer | None = None
        while True:
            with network.session().stream(
                "GET", url, headers=self._headers(start), timeout=self._timeout_s, follow_redirects=True
            ) as response:
                if response.status_code in (200, 206):
                    if with_token is not None:
                        _log.warning("The token in %s was refused and is not used", self._token_source)
                    self._check_encoding(response)
                    yield response
                    return
                answer = _answer(response, self._token is not None, self._token_source)
            if answer.status not in (401, 403) or self._token is None:
                if with_token is not None:
                    self._raise_first(with_token, answer)
                raise answer
            with_token, self._token = answer, None

    def _raise_first(self, with_token: HubAnswer, without: HubAnswer) -> NoReturn:
        """The answer to a request with a token, which says more than the one without."""
        self._token, _ = network.token()  # other files may need it
        with_token.refused_without_token = without.status
        raise with_token

    def _headers(self, start: int) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers: dict[str, str] = build_hf_headers(token=self._token or False)
        headers["Accept-Encoding"] = "identity"
        if start:
            headers["Range"] = f"bytes={start}-"
        return headers

    def _check_encoding(self, response: Any) -> None:
        encoding = str(response.headers.get("Content-Encoding", "")).lower().strip()
        if encoding not in _PLAIN_ENCODINGS or (
            encoding not in ("", "identity") and response.status_code == 206
        ):
            raise DownloadFailed(
                f"The hub sends {self._repo} compressed ({encoding[:20]!r}), which was not asked for; check "
                "HF_ENDPOINT and the proxy."
            )


def is_transient(error: Exception) -> bool:
    """Whether a retry may help: a lost connection, a timeout, rate limiting or a server error."""
    if isinstance(error, HubAnswer):
        return error.status in (408, 429) or error.status >= 500
    return network.is_timeout_or_lost(error)


def retry_after(error: Exception) -> float | None:
    """Seconds that the hub asks to wait, ``None`` if it does not say."""
    return error.retry_after if isinstance(error, HubAnswer) else None


def back_off(amount: float, growing: bool, cancelled: Callable[[], bool]) -> None:
    """Wait ``amount`` seconds, or longer with each of ``amount`` failures; less if cancelled."""
    deadline = time.monotonic() + (min(0.5 * 2**amount, 8) if growing else amount)
    while time.monotonic() < deadline and not cancelled():
        time.sleep(0.05)


def _answer(response: Any, with_token: bool, source: str) -> HubAnswer:
    headers = response.headers
    return HubAnswer(
        status=int(response.status_code),
        code=str(headers.get("X-Error-Code", ""))[:100],
        message=str(headers.get("X-Error-Message", ""))[:300],
        retry_after=_seconds(headers),
        token_source=source if with_token else "",
    )


def _seconds(headers: Any) -> float | None:
    """Seconds to wait, from ``Retry-After`` (seconds or a date) or ``RateLimit`` (its ``t``)."""
    text = str(headers.get("Retry-After", "")).strip()
    if text.isdecimal() and len(text) < 8:
        return float(text)
    if text:
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            pass
    for part in str(headers.get("RateLimit", "")).split(";"):
        key, _, value = part.strip().partition("=")
        if key == "t" and value.isdecimal() and len(value) < 8:
            return float(value)
    return None
