"""Saves on a disk that is full from the n-th write on, for every n; the chat must continue."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import errno
import os
import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

from tqchat.engine import events
from tqchat.engine.commands import ChatMessage, LoadModel, Sampling, Send
from tqchat.engine.models import LoadedModel
from tqchat.engine.worker import Engine
from tqchat.lab.endure import require
from tqchat.paths import Paths
from tqchat.store.vault import Restored, Vault

CONVERSATION_ID = "full"
TIMEOUT_S = 120.0
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class FullDisk:
    """Number of failed saves before one succeeded."""

    refused: int = 0


class _WriteBudget:
    """Counts write operations; refuses them after ``room``."""

    def __init__(self, room: int) -> None:
        self.room = room

    def count_write(self) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _FullDiskFile:
    """A file on the full disk: a refused write stores half of its content."""

    def __init__(self, file: Any, disk: _WriteBudget) -> None:
        self._file, self._disk = file, disk

    def write(self, content: Any) -> int:
        try:
            self._disk.count_write()
        except OSError:
            self._file.write(bytes(content)[: len(content) // 2])
            raise
        return int(self._file.write(content))

    def __enter__(self) -> _FullDiskFile:
        self._file.__enter__()
        return self

    def __exit__(self, *problem: Any) -> Any:
        return self._file.__exit__(*problem)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def full_after(operations: int) -> Iterator[None]:
    """Make the disk appear full to this process after ``operations`` creations, writes, flushes or renames.

    Removing files always works and frees no space."""
    disk = _WriteBudget(operations)

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            disk.count_write()
            return real(*arguments, **options)

        return call

    opened, fdopened = os.open, os.fdopen

    def open_(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & _WRITE_FLAGS:
            disk.count_write()
        return opened(path, flags, *arguments, **options)

    def fdopen(descriptor: int, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = fdopened(descriptor, mode, *arguments, **options)
        return _FullDiskFile(file, disk) if "w" in mode else file

    patched = {name: refusing(getattr(os, name)) for name in ("mkdir", "replace", "rename", "fsync")}
    with ExitStack() as stack:
        for name, new in (patched | {"open": open_, "fdopen": fdopen}).items():
            stack.enter_context(mock.patch.object(os, name, new))
        yield


def endure(
    model: LoadedModel, ref: str, folder: Path, tell: Callable[[int], None] = lambda refused: None
) -> FullDisk:
    """Chat while each save fails one write later than the one before, until a save succeeds.

    After each failure the user must be told, the reply must exist, and the earlier save must load unchanged.

    Raises:
        CheckFailed: if one of these checks fails.
    """
    paths = Paths(*(folder / name for name in ("config", "state", "data", "cache", "logs")))
    paths.ensure()
    received: queue.Queue[events.Event] = queue.Queue()
    engine, vault, result = Engine(received.put, paths=paths), Vault(paths.caches), FullDisk()

    def ask(messages: list[ChatMessage]) -> str:
        engine.submit(
            Send(CONVERSATION_ID, tuple(messages), "turbo0v4", Sampling(temperature=0.0, max_tokens=4))
        )
        return str(_next(received, events.Done).text)

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (vault.folder / CONVERSATION_ID).iterdir()}

    engine.start()
    try:
        engine.submit(LoadModel(ref))
        messages = [ChatMessage("user", "red green blue " * 70)]
        messages.append(ChatMessage("assistant", ask(messages)))
        _next(received, events.Saved)
        before = files()
        for room in count():
            messages.append(ChatMessage("user", "one two three " * (70 if room == 0 else 1)))
            with full_after(room):
                messages.append(ChatMessage("assistant", ask(messages)))
                outcome = _next(received, events.Saved, events.SaveFailed)
            if isinstance(outcome, events.Saved):
                break
            require(
                "could not be saved" in outcome.message, f"A full disk was reported as: {outcome.message}"
            )
            require(files() == before, f"A save that was refused after {room} writes changed {folder}")
            require(_is_whole(vault, model), f"A save that was refused after {room} writes damaged {folder}")
            result.refused += 1
            tell(result.refused)
        require(_is_whole(vault, model), f"The last save in {folder} cannot be restored")
    finally:
        engine.shutdown(TIMEOUT_S)
    return result


def _is_whole(vault: Vault, model: LoadedModel) -> bool:
    back = vault.load(CONVERSATION_ID, fingerprint=model.info.fingerprint, scheme="turbo0v4")
    return isinstance(back, Restored) and back.damage is None


def _next(received: queue.Queue[events.Event], *kinds: type[Any]) -> Any:
    while True:
        event = received.get(timeout=TIMEOUT_S)
        failed = isinstance(event, events.Failed | events.ModelFailed)
        require(not failed, f"The chat did not continue: {getattr(event, 'message', '')}")
        if isinstance(event, kinds):
            return event
