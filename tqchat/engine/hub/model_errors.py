"""Why a model cannot be loaded, found in its files."""

from __future__ import annotations

from tqchat.engine.failures import ModelUnusable
from tqchat.errors import TqchatError


class NotAModel(TqchatError):
    """The folder is not a model, or an incomplete or damaged one."""


class NeedsCustomCode(TqchatError):
    """The model can only be loaded by running its own Python code, which tqchat never does."""


class UnsupportedModel(ModelUnusable):
    """mlx-lm lacks the architecture, or cannot read the format of the weights."""
