"""Models worth downloading, from the file ``recommended.toml`` that is shipped with tqchat."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("recommended.toml")


@dataclass(frozen=True)
class Recommended:
    """A model on the hub, with what its memory depends on.

    Attributes:
        active: Parameters that work on one token; fewer than ``parameters`` in a mixture of experts.
        bytes: Of the weight files.
        context: Context limit in tokens.
        window: Tokens that a sliding-window layer keeps, 0 if all layers keep all tokens.
        full_every: With a window, every n-th layer keeps all tokens.
    """

    repo: str
    licence: str
    parameters: int
    bytes: int
    context: int
    layers: int
    kv_heads: int
    head_dim: int
    note: str
    active: int = 0
    window: int = 0
    full_every: int = 1

    @property
    def parameters_per_token(self) -> int:
        """Parameters that are read for one token."""
        return self.active or self.parameters


@cache
def models() -> tuple[Recommended, ...]:
    """All of them, from large to small."""
    return tuple(Recommended(**entry) for entry in tomllib.loads(FILE.read_text("utf-8"))["models"])


@cache
def checked() -> date:
    """When the file was last checked."""
    found: date = tomllib.loads(FILE.read_text("utf-8"))["checked"]
    return found
