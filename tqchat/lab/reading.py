"""Text files and the tokens in them."""

from __future__ import annotations

import logging
from pathlib import Path

from tqchat.engine.models import LoadedModel
from tqchat.errors import TqchatError


class BadText(TqchatError):
    """The text to measure on is not usable."""

    exit_code = 2


def read_text(path: Path) -> str:
    """A text file's content.

    Raises:
        BadText: if it cannot be read or is no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadText(f"{path} is not UTF-8 text.") from error
    except OSError as error:
        raise BadText(f"{path} cannot be read ({(error.strerror or str(error)).lower()}).") from error


def encode(model: LoadedModel, text: str) -> list[int]:
    """The model's tokens for a text."""
    # transformers warns of texts longer than the model's context; they are cut later.
    library = logging.getLogger("transformers")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        return list(model.tokenizer.encode(text))
    finally:
        library.setLevel(level)


def portion(model: LoadedModel, text: str, tokens: int | None, prefill: int | None) -> tuple[list[int], int]:
    """The tokens to measure on, one more than caches will hold, and how many of them are the prompt.

    Args:
        tokens: How many the caches shall hold in the end; by default 4,096, or as many as text and model
            allow.
        prefill: Size of the prompt; by default a quarter.

    Raises:
        BadText: if the text is shorter than that, or the model reads no more.
    """
    if tokens is not None and tokens < 2:
        raise BadText("At least 2 tokens are needed; --tokens 2048 is a good start.")
    limit = model.context_limit
    if tokens is not None and limit is not None and tokens > limit:
        raise BadText(f"{model.info.name} reads at most {limit:,} tokens; ask for no more with --tokens.")
    ids = encode(model, text)
    held = min(4096, len(ids) - 1, limit or len(ids)) if tokens is None else tokens
    if held < 2 or held > len(ids) - 1:
        wanted = "" if tokens is None else f", fewer than the {tokens + 1:,} that --tokens {tokens} needs"
        raise BadText(f"The text is too short: it has {len(ids):,} tokens{wanted}.")
    prompt = max(1, held // 4) if prefill is None else prefill
    if not 0 < prompt < held:
        raise BadText(f"--prefill must leave something to measure: between 1 and {held - 1:,}.")
    return ids[: held + 1], prompt
