"""Compilation of a model's CUDA kernels ahead of its first reply, and what the user is told of it.

MLX compiles kernels when they are first used and keeps them on disk, at about two seconds each.
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
from tqchat.kv.scheme import TILE, parse_scheme
from tqchat.kv.storage.side import GPU_TOKENS_PER_PACK

POLL_INTERVAL_S = 0.5
SENTENCE = "The quick brown fox jumps over the lazy dog. "
SENTENCES = 16
"""Sentences of a prompt that is long enough for tokens to be encoded."""
LONG_SENTENCES = 48
"""Sentences of a prompt that leaves packed tokens behind fine ones, which have kernels of their own."""
REPLY_TOKENS = GPU_TOKENS_PER_PACK[0] + TILE
"""Enough for a reply to pack tokens of its own, and for a step of the model to be compiled."""
QUIET_POLLS = 12
"""Polls without another kernel after which compilation has ended; none takes MLX so long."""
COMPILING = "Compiling kernels for this card, once for each kind of model and scheme:"
COMPILED = "The kernels for this card are compiled; later starts take them from disk."


def kernel_folder() -> Path | None:
    """Folder of MLX's compiled kernels; ``None`` on other devices than CUDA's."""
    folder = os.environ.get(KERNEL_FOLDER_VARIABLE)
    return Path(folder) if folder and backend.prepare().name == "cuda" else None


def is_needed(model: LoadedModel, scheme: str) -> bool:
    """Whether kernels have to be compiled for a reply of this model under a scheme."""
    mark = _mark(model, scheme)
    return mark is not None and not mark.exists()


def warm_up(model: LoadedModel, scheme: str, stop: threading.Event) -> None:
    """Generate short replies that nobody sees, on the calling thread; their kernels stay on disk."""
    from tqchat.engine.session import Session

    failed = False
    for sentences in (SENTENCES, LONG_SENTENCES) if parse_scheme(scheme).fine else (SENTENCES,):
        events = Session(model, scheme).send(
            [ChatMessage("user", SENTENCE * sentences)], Sampling(max_tokens=REPLY_TOKENS), stop
        )
        failed |= any(isinstance(event, Failed) for event in events)
    mark = _mark(model, scheme)
    if mark is not None and not failed and not stop.is_set():
        with suppress(OSError):
            mark.touch()


def _mark(model: LoadedModel, scheme: str) -> Path | None:
    folder = kernel_folder()
    digest = hashlib.sha256(f"{model.info.fingerprint} {scheme}".encode()).hexdigest()[:16]
    return None if folder is None else folder / f"warm-{digest}"


class KernelWatch:
    """Says how far the compilation of kernels is, each time that there is another, and when it has ended.

    Args:
        folder: See ``kernel_folder``.
        say: Called with a sentence, on a thread of its own.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._before = self._count()
        threading.Thread(target=self._watch, name="tqchat-kernels", daemon=True).start()

    def _count(self) -> int:
        with suppress(OSError):
            return sum(1 for name in os.listdir(self._folder) if name.endswith(".ptx"))  # noqa: PTH208
        return 0

    def _watch(self) -> None:
        told, quiet_polls = 0, QUIET_POLLS
        while True:
            time.sleep(POLL_INTERVAL_S)
            compiled = self._count() - self._before
            if compiled > told:
                told, quiet_polls = compiled, 0
                self._say(f"{COMPILING} {compiled} so far.")
                continue
            quiet_polls += 1
            if quiet_polls == QUIET_POLLS:
                self._say(COMPILED)
