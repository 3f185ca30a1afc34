"""Reads and tokenises the text to measure on."""

from __future__ import annotations

import logging
from pathlib import Path

from tqchat.engine.models import LoadedModel
from tqchat.errors import TqchatError


class BadText(TqchatError):
    """The text cannot be used for a measurement."""

    exit_code = 2


def read_text(path: Path) -> str:
    """Content of a text file.

    Raises:
        BadText: if it cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadText(f"{path} is not UTF-8 text.") from error
    except OSError as error:
        raise BadText(f"{path} cannot be read ({(error.strerror or str(error)).lower()}).") from error


def encode(model: LoadedModel, text: str) -> list[int]:
    """Tokens of a text."""
    # Silences the warning about texts longer than the context limit; portion() cuts them.
    library = logging.getLogger("transformers")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        return list(model.tokenizer.encode(text))
    finally:
        library.setLevel(level)


def portion(model: LoadedModel, text: str, tokens: int | None, prefill: int | None) -> tuple[list[int], int]:
    """Tokens to measure on, one more than the caches will hold, and the length of the prompt among them.

    Args:
        tokens: Cache length at the end; default 4,096, or as many as text and model allow.
        prefill: Length of the prompt; default a quarter.

    Raises:
        BadText: if the text is too short or the context limit too small.
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
