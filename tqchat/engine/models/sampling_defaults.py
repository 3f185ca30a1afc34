"""A model's own sampling values, from its ``generation_config.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tqchat.engine.commands import Sampling
from tqchat.store.sampling import violation

DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.95

_FILE = "generation_config.json"
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def sampling_defaults(folder: Path) -> tuple[Sampling, str | None]:
    """The model's sampling values; what it leaves out, or cannot be used, we choose.

    Returns:
        The values, and a sentence about those that are ignored.
    """
    table, problem = _table(folder)
    found: dict[str, Any] = {}
    ignored: list[str] = []
    for name in (*_NUMBERS, "top_k"):
        value = table.get(name)
        if value is None:
            continue
        if name == "top_k" and _is_number(value):
            # 0 and -1 mean all tokens; so does more than any vocabulary has.
            value = int(value) if 0 < value < 1_000_000 else 0
        if (wanted := violation(name, value)) is None:
            found[name] = value if name == "top_k" else float(value)
        else:
            ignored.append(f"{name} is {_short(value)} and must be {wanted}")
    if table.get("do_sample") is False:
        found["temperature"] = 0.0
    if ignored:
        problem = f"{folder.name}: ignored in its {_FILE}: {'; '.join(ignored)}."
    defaults = {"temperature": DEFAULT_TEMPERATURE, "top_p": DEFAULT_TOP_P}
    return Sampling(**(defaults | found)), problem


def _table(folder: Path) -> tuple[dict[str, Any], str | None]:
    try:
        table = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, RecursionError):
        table = None
    if isinstance(table, dict):
        return table, None
    return {}, f"{folder.name}: its {_FILE} cannot be read, so tqchat's own sampling values are used."


def _is_number(value: Any) -> bool:
    # Compared before it is converted: a very large integer does not fit a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
