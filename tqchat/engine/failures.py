"""Failures in words for a person. Ones that nobody foresaw also go to the log."""

from __future__ import annotations

import logging

from tqchat.errors import TqchatError

_log = logging.getLogger(__name__)


class NoModel(TqchatError):
    """Something was asked of a model before there was one."""

    def __init__(self) -> None:
        super().__init__("No model is loaded yet: choose one first.")


class ContextFull(TqchatError):
    """The conversation is longer than what the model was made for."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(
            f"This conversation is {tokens:,} tokens long and the model reads at most {limit:,}: "
            "shorten the message, go back to an earlier one, or start a new conversation."
        )


class RereadStopped(TqchatError):
    """The person stopped a re-reading."""

    def __init__(self, scheme: str) -> None:
        super().__init__(f"Reading again was stopped; the cache stays under {scheme}.")


def explained(error: BaseException) -> str:
    """One sentence for an error: its own if it has one for people, else a general one and a log entry."""
    if isinstance(error, TqchatError):
        return str(error)
    _log.error("Something failed that should not", exc_info=error)
    text = (str(error).splitlines() or [""])[0].strip().rstrip(".")
    if isinstance(error, MemoryError) or "malloc" in text or "memory" in text.lower():
        return "There is not enough memory for this: close other programs, or choose a smaller model."
    return f"Something went wrong ({type(error).__name__}: {text}); the log says more, and nothing is lost."
