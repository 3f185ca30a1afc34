"""Search for models on the hub, and what is known of one before it is downloaded. Results are untrusted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from tqchat.engine.hub import catalog, resolve
from tqchat.engine.hub.remote import network
from tqchat.engine.hub.remote.download_errors import HubAnswer, describe, http_error
from tqchat.engine.hub.remote.listing import list_files
from tqchat.engine.hub.remote.transport import Hub
from tqchat.engine.model_config import context_limit
from tqchat.errors import TqchatError

PREFERRED_AUTHOR = "mlx-community"
"""Its models come first: they are converted for mlx-lm."""

MIN_CHARS = 2
MAX_CHARS = 100
"""Shortest and longest search text."""

MAX_HITS = 12
"""Models of the preferred author, and at most as many of others."""

TIME_LIMIT_S = 20.0
"""For a search, and for reading about all models that it has found."""

_TIMEOUT_S = 8.0
_THREADS = 4
_MAX_LISTING_BYTES = 8 << 20
_MAX_COUNT = 1 << 53
_MAX_NAME_CHARS = 60
_SUBJECT = "The list of models"
_POLL_INTERVAL_S = 0.1

_BY_DOWNLOADS: dict[str, str | int] = {"sort": "downloads", "direction": -1}

T = TypeVar("T")


class SearchFailed(TqchatError):
    """The hub could not be searched."""


@dataclass(frozen=True)
class Hit:
    """A model that the hub's search has found."""

    repo: str
    downloads: int


@dataclass(frozen=True)
class RemoteModel:
    """A model on the hub, before it is downloaded.

    Attributes:
        bytes: Of the files to download; ``None`` if the hub does not say.
        quantisation: Short name of the weights' format.
        problem: Why it cannot be loaded or downloaded.
    """

    repo: str
    bytes: int | None = None
    architecture: str = ""
    quantisation: str = ""
    context_limit: int | None = None
    licence: str = ""
    problem: str | None = None


def search(words: str, cancelled: Callable[[], bool] = lambda: False) -> list[Hit]:
    """Models whose names match ``words``: those of ``PREFERRED_AUTHOR`` first, each part by downloads.

    Raises:
        SearchFailed: with a sentence for the user.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise SearchFailed("Offline mode is on (HF_HUB_OFFLINE), so the hub is not searched.")
    words = " ".join(words.split())[:MAX_CHARS]
    own_words = words.removeprefix(f"{PREFERRED_AUTHOR}/")

    def ask() -> list[Hit]:
        hub = Hub(_SUBJECT, cancelled, timeout_s=_TIMEOUT_S, retries=0)
        first = hub.search(search=own_words, author=PREFERRED_AUTHOR, limit=MAX_HITS, **_BY_DOWNLOADS)
        others = hub.search(search=words, filter="safetensors", limit=2 * MAX_HITS, **_BY_DOWNLOADS)
        return [
            *(hit for hit in _hits(first) if _is_preferred(hit)),
            *(hit for hit in _hits(others) if not _is_preferred(hit)),
        ]

    try:
        found = next(_in_time([ask], cancelled), None)
    except HubAnswer as answer:
        raise SearchFailed(_answer(answer)) from answer
    except TqchatError as error:
        raise SearchFailed(str(error)) from error
    except Exception as error:
        if not isinstance(error, (http_error(), OSError)) and not network.is_client_error(error):
            raise
        raise SearchFailed(str(network.describe(_SUBJECT, error, searching=True))) from error
    if found is None:
        raise SearchFailed("The hub did not answer the search in time; try again later.")
    preferred = [hit for hit in found if _is_preferred(hit)][:MAX_HITS]
    return preferred + [hit for hit in found if not _is_preferred(hit)][:MAX_HITS]


def inspect(repo: str, cancelled: Callable[[], bool] = lambda: False) -> RemoteModel:
    """Properties of a model on the hub, and whether tqchat can load it, from its files and configuration.

    Raises:
        SearchFailed: if the hub cannot be reached.
    """
    try:
        hub = Hub(repo, cancelled, timeout_s=_TIMEOUT_S, retries=0)
        found = list_files(hub, repo, _MAX_LISTING_BYTES)
    except HubAnswer as answer:
        if answer.status == 429 or answer.status >= 500:
            raise SearchFailed(_answer(answer)) from answer
        return RemoteModel(repo, problem=str(describe(repo, answer)))
    except TqchatError as error:
        return RemoteModel(repo, problem=str(error))
    except Exception as error:
        if not isinstance(error, (http_error(), OSError, ValueError)) and not network.is_client_error(error):
            raise
        raise SearchFailed(str(describe(repo, error))) from error
    return RemoteModel(
        repo,
        found.bytes,
        str(found.config["model_type"])[:_MAX_NAME_CHARS],
        catalog.quantisation(found.config)[:_MAX_NAME_CHARS],
        context_limit(found.config),
        found.licence,
    )


def inspect_all(repos: Sequence[str], cancelled: Callable[[], bool] = lambda: False) -> Iterator[RemoteModel]:
    """``inspect`` several models at once, in the order of the answers, as far as they come in time."""

    def ask(repo: str) -> RemoteModel | None:
        try:
            return inspect(repo, cancelled)
        except SearchFailed:
            return None

    calls = [lambda repo=repo: ask(repo) for repo in repos]
    yield from (model for model in _in_time(calls, cancelled) if model is not None)


def _in_time(calls: Sequence[Callable[[], T]], cancelled: Callable[[], bool]) -> Iterator[T]:
    """Results of ``calls`` as they come, until ``TIME_LIMIT_S`` is over.

    They run on daemon threads, which nothing waits for: a hub can keep a request open for very long.
    """
    deadline = time.monotonic() + TIME_LIMIT_S
    waiting: SimpleQueue[Callable[[], T]] = SimpleQueue()
    results: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()
    for call in calls:
        waiting.put(call)

    def work() -> None:
        while not cancelled() and time.monotonic() < deadline:
            try:
                call = waiting.get_nowait()
            except Empty:
                return
            try:
                results.put((call(), None))
            except Exception as error:
                results.put((None, error))

    for _ in range(min(_THREADS, len(calls))):
        threading.Thread(target=work, name="tqchat-search", daemon=True).start()
    missing = len(calls)
    while missing and not cancelled() and time.monotonic() < deadline:
        try:
            result, error = results.get(timeout=_POLL_INTERVAL_S)
        except Empty:
            continue
        missing -= 1
        if error is not None:
            raise error
        yield result  # type: ignore[misc]


def _is_preferred(hit: Hit) -> bool:
    return hit.repo.partition("/")[0] == PREFERRED_AUTHOR


def _hits(answer: Any) -> list[Hit]:
    """Valid entries of a search's answer, most downloaded first."""
    if not isinstance(answer, list):
        raise network.portal(_SUBJECT)
    found: dict[str, Hit] = {}
    for row in answer:
        repo = row.get("id", row.get("modelId")) if isinstance(row, dict) else None
        if isinstance(repo, str) and resolve.is_repo_id(repo):
            count = row.get("downloads")
            found[repo] = Hit(repo, count if type(count) is int and 0 <= count < _MAX_COUNT else 0)
    return sorted(found.values(), key=lambda hit: -hit.downloads)


def _answer(answer: HubAnswer) -> str:
    if answer.status == 429:
        return "Hugging Face limits the number of searches (429); try again in some minutes."
    return f"Hugging Face answers {answer.status}; try again later."
