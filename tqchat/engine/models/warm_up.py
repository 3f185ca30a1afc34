"""Compilation of a model's CUDA kernels ahead of its first reply, and what the user is told of it.

MLX compiles kernels when they are first used and keeps them on disk. On a new machine a first reply needs
some fifteen, at two seconds each.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tqchat.engine import backend
from tqchat.engine.backend import KERNEL_FOLDER_VARIABLE
from tqchat.engine.commands import ChatMessage, Sampling
from tqchat.engine.events import Failed
from tqchat.engine.models.loading import LoadedModel

POLL_INTERVAL_S = 0.5
PROMPT = "The quick brown fox jumps over the lazy dog. " * 40
"""Long enough that tokens are packed."""
REPLY_TOKENS = 3
COMPILING = "Compiling kernels for this card, once for each kind of model and scheme."


def kernel_folder() -> Path | None:
    """Where MLX keeps compiled kernels; ``None`` on other devices than CUDA's."""
    folder = os.environ.get(KERNEL_FOLDER_VARIABLE)
    return Path(folder) if folder and backend.prepare().name == "cuda" else None


def sentence(count: int) -> str:
    """What to tell the user while kernels are compiled."""
    return f"{COMPILING} {count} so far."


def is_needed(model: LoadedModel, scheme: str) -> bool:
    """Whether kernels have to be compiled for a reply of this model under a scheme."""
    mark = _mark(model, scheme)
    return mark is not None and not mark.exists()


def warm_up(model: LoadedModel, scheme: str, stop: threading.Event) -> None:
    """Generate a short reply that nobody sees, on the calling thread; its kernels stay on disk."""
    from tqchat.engine.session import Session

    events = Session(model, scheme).send(
        [ChatMessage("user", PROMPT)], Sampling(max_tokens=REPLY_TOKENS), stop
    )
    failed = any(isinstance(event, Failed) for event in events)
    mark = _mark(model, scheme)
    if mark is not None and not failed and not stop.is_set():
        with suppress(OSError):
            mark.touch()


def _mark(model: LoadedModel, scheme: str) -> Path | None:
    folder = kernel_folder()
    digest = hashlib.sha256(f"{model.info.fingerprint} {scheme}".encode()).hexdigest()[:16]
    return None if folder is None else folder / f"warm-{digest}"


class KernelWatch:
    """Tells how many kernels have been compiled since it began, each time that there is another.

    Args:
        folder: See ``kernel_folder``.
        say: Called on a thread of its own.
    """

    def __init__(self, folder: Path, say: Callable[[int], None]) -> None:
        self._folder, self._say = folder, say
        self._before = self._count()
        threading.Thread(target=self._watch, name="tqchat-kernels", daemon=True).start()

    def _count(self) -> int:
        with suppress(OSError):
            return sum(1 for name in os.listdir(self._folder) if name.endswith(".ptx"))  # noqa: PTH208
        return 0

    def _watch(self) -> None:
        told = 0
        while True:
            time.sleep(POLL_INTERVAL_S)
            if (compiled := self._count() - self._before) > told:
                told = compiled
                self._say(compiled)
