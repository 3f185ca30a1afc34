"""A disk that fills up at every single write of a save, and the chat that goes on."""

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
from tqchat.lab.endure import insist
from tqchat.paths import Paths
from tqchat.store.vault import Restored, Vault

ID = "full"
SECONDS = 120.0
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class FullDisk:
    """How many writes of a save were refused, one after another, until one save came to its end."""

    refused: int = 0


class _Disk:
    """Room for so many more operations that write; then none."""

    def __init__(self, room: int) -> None:
        self.room = room

    def take(self) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _File:
    """A file that the full disk takes half of a write of."""

    def __init__(self, file: Any, disk: _Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, content: Any) -> int:
        try:
            self._disk.take()
        except OSError:
            self._file.write(bytes(content)[: len(content) // 2])
            raise
        return int(self._file.write(content))

    def __enter__(self) -> _File:
        self._file.__enter__()
        return self

    def __exit__(self, *problem: Any) -> Any:
        return self._file.__exit__(*problem)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def full_after(operations: int) -> Iterator[None]:
    """Everything in this process finds the disk full once it has made, written, flushed or renamed so many
    files and folders; removing them is always possible, and gives no room."""
    disk = _Disk(operations)

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **others: Any) -> Any:
            disk.take()
            return real(*arguments, **others)

        return call

    opened, fdopened = os.open, os.fdopen

    def open_(path: Any, flags: int, *arguments: Any, **others: Any) -> int:
        if flags & _WRITING:
            disk.take()
        return opened(path, flags, *arguments, **others)

    def fdopen(descriptor: int, mode: str = "r", *arguments: Any, **others: Any) -> Any:
        file = fdopened(descriptor, mode, *arguments, **others)
        return _File(file, disk) if "w" in mode else file

    changed = {name: refusing(getattr(os, name)) for name in ("mkdir", "replace", "rename", "fsync")}
    with ExitStack() as stack:
        for name, new in (changed | {"open": open_, "fdopen": fdopen}).items():
            stack.enter_context(mock.patch.object(os, name, new))
        yield


def endure(
    model: LoadedModel, ref: str, folder: Path, tell: Callable[[int], None] = lambda refused: None
) -> FullDisk:
    """Chat on while every save is refused a little later, until one is not.

    After each refusal the person must have been told, the reply must be there, and what was saved before
    must come back as it was.

    Raises:
        Broken: if that is not so.
    """
    paths = Paths(*(folder / name for name in ("config", "state", "data", "cache", "logs")))
    paths.ensure()
    heard: queue.Queue[events.Event] = queue.Queue()
    engine, vault, found = Engine(heard.put, paths=paths), Vault(paths.caches), FullDisk()

    def ask(said: list[ChatMessage]) -> str:
        engine.submit(Send(ID, tuple(said), "turbo0v4", Sampling(temperature=0.0, max_tokens=4)))
        return str(_next(heard, events.Done).text)

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (vault.folder / ID).iterdir()}

    engine.start()
    try:
        engine.submit(LoadModel(ref))
        said = [ChatMessage("user", "red green blue " * 70)]
        said.append(ChatMessage("assistant", ask(said)))
        _next(heard, events.Saved)
        before = files()
        for room in count():
            said.append(ChatMessage("user", "one two three " * (70 if room == 0 else 1)))
            with full_after(room):
                said.append(ChatMessage("assistant", ask(said)))
                outcome = _next(heard, events.Saved, events.SaveFailed)
            if isinstance(outcome, events.Saved):
                break
            insist("could not be saved" in outcome.message, f"A full disk was told as: {outcome.message}")
            insist(files() == before, f"A save that was refused after {room} writes changed {folder}")
            insist(_is_whole(vault, model), f"A save that was refused after {room} writes damaged {folder}")
            found.refused += 1
            tell(found.refused)
        insist(_is_whole(vault, model), f"The last save in {folder} is no good")
    finally:
        engine.shutdown(SECONDS)
    return found


def _is_whole(vault: Vault, model: LoadedModel) -> bool:
    back = vault.load(ID, fingerprint=model.info.fingerprint, scheme="turbo0v4")
    return isinstance(back, Restored) and back.damage is None


def _next(heard: queue.Queue[events.Event], *kinds: type[Any]) -> Any:
    while True:
        event = heard.get(timeout=SECONDS)
        failed = isinstance(event, events.Failed | events.ModelFailed)
        insist(not failed, f"The chat did not go on: {getattr(event, 'message', '')}")
        if isinstance(event, kinds):
            return event
