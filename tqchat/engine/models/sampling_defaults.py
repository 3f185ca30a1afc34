"""A model's default sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqchat.engine.commands import Sampling

DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.95


def sampling_defaults(folder: Path) -> Sampling:
    """Sampling from the model's ``generation_config.json``; our defaults for what it leaves out."""
    config: dict[str, Any] = {}
    try:
        table = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        config = table if isinstance(table, dict) else {}
    except (OSError, ValueError):
        pass

    def number(key: str) -> float | None:
        value = config.get(key)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    temperature = number("temperature")
    if config.get("do_sample") is False:
        temperature = 0.0
    top_k = number("top_k")
    top_p = number("top_p")
    return Sampling(
        temperature=DEFAULT_TEMPERATURE if temperature is None else temperature,
        top_p=DEFAULT_TOP_P if top_p is None else top_p,
        top_k=None if top_k is None else int(top_k),
        min_p=number("min_p"),
        repetition_penalty=number("repetition_penalty"),
    )
