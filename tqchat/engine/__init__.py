"""The engine: models, prompts, generation and the thread that owns MLX.

Names are loaded when first used: events, commands and the worker need no MLX, and the rest imports it only
after ``backend.prepare()``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqchat.engine.backend import Backend as Backend
    from tqchat.engine.backend import prepare as prepare
    from tqchat.engine.models import LoadedModel as LoadedModel
    from tqchat.engine.session import Session as Session
    from tqchat.engine.worker import Engine as Engine

_MODULES = {
    "Backend": "backend",
    "prepare": "backend",
    "LoadedModel": "models",
    "Session": "session",
    "Engine": "worker",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
