"""Engine errors, and the sentence that the user sees for any error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tqchat.errors import TqchatError
from tqchat.text import one_line
from tqchat.units import size

OTHER_COPY = "download or copy the model again, or choose another version of it"
"""What to do about a model whose files make other libraries fail, as the end of a sentence."""

_MAX_REASON_CHARS = 300
_log = logging.getLogger(__name__)


class NoModel(TqchatError):
    """A command needs a model and none is loaded."""

    def __init__(self) -> None:
        super().__init__("No model is loaded yet: choose one first.")


class ModelUnusable(TqchatError):
    """The model is there but cannot be loaded."""


class ContextFull(TqchatError):
    """The conversation is longer than the context limit."""

    def __init__(self, tokens: int, limit: int) -> None:
        self.tokens = tokens
        super().__init__(
            f"This conversation is {tokens:,} tokens long and the model reads at most {limit:,}: "
            "shorten the message, go back to an earlier one, or start a new conversation."
        )


class UnknownToken(TqchatError):
    """The tokenizer writes a token for which the model has no vector."""

    def __init__(self, name: str, token: int, known: int) -> None:
        super().__init__(
            f"The tokenizer of {name} writes token {token:,} and its weights know {known:,}: they do not "
            f"belong together; {OTHER_COPY}."
        )


class OverMemoryBudget(TqchatError):
    """The prompt's cache would not fit its memory budget."""

    def __init__(self, tokens: int, scheme: str, needed: int, budget: int, fitting: str | None) -> None:
        problem = f"{tokens:,} tokens under {scheme} take {size(needed)}, more than the {size(budget)}"
        remedy = (
            "start a new conversation or raise memory_budget"
            if fitting is None
            else f"{fitting} would fit: choose it, or let step_down do so by itself"
        )
        super().__init__(f"{problem} that the cache may take; {remedy}.")


class DraftMismatch(TqchatError):
    """The draft model cannot be used with the model."""

    exit_code = 2


class RereadStopped(TqchatError):
    """Re-reading the transcript was stopped by the user."""

    def __init__(self, scheme: str) -> None:
        super().__init__(f"Reading again was stopped; the cache stays under {scheme}.")


@contextmanager
def as_model_error(name: str) -> Iterator[None]:
    """Turn whatever a model's files make other libraries raise into a sentence.

    Args:
        name: The model's name, for the sentence.

    Raises:
        ModelUnusable: in place of any other error.
    """
    try:
        yield
    except TqchatError:
        raise
    except BaseException as error:
        # A panic of a library written in Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "No Metal back-end" in str(error):
            reason = "mlx-lm computes it with Metal only, which a Mac has; choose another model"
        else:
            reason = f"{reason_of(error)}; {OTHER_COPY}"
        raise ModelUnusable(f"{name} cannot be loaded: {reason}.") from error


def reason_of(error: BaseException) -> str:
    """Kind and first line of an error of another library, for the end of a sentence."""
    lines = str(error)[:_MAX_REASON_CHARS].splitlines()
    return one_line(f"{type(error).__name__}: {lines[0] if lines else ''}").rstrip(".: ")


def user_message(error: BaseException) -> str:
    """The sentence for an error: a ``TqchatError``'s own, else a general one and a log entry."""
    if isinstance(error, TqchatError):
        return str(error)
    _log.error("Unexpected error", exc_info=error)
    text = (str(error).splitlines() or [""])[0].strip().rstrip(".")
    if isinstance(error, MemoryError) or "malloc" in text or "memory" in text.lower():
        return "There is not enough memory for this: close other programs, or choose a smaller model."
    return (
        "Something unexpected went wrong, and nothing is lost: try again. The log says more; `tqchat locate` "
        "prints where it is."
    )
