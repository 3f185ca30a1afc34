"""Completion in the prompt: slash commands, their arguments, files after an @."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqchat.paths import expand_user
from tqchat.text import single_line
from tqchat.ui.input import slash
from tqchat.ui.input.slash import Command

MAX_FOLDER_ENTRIES = 2_000
"""Entries of a folder that are searched."""
_MENTION = re.compile(r'(?:^|\s)@("[^"]*|[^\s"]*)$')


@dataclass(frozen=True)
class Completion:
    """One completion: ``insert`` replaces the line from ``start`` to the cursor."""

    label: str
    help: str
    start: int
    insert: str


def completions(
    line: str, commands: Sequence[Command], *, first_line: bool = True, folder: Path | None = None
) -> list[Completion]:
    """The completions of ``line``, the text before the cursor."""
    if first_line and line.startswith("/"):
        return [
            Completion(
                found,
                slash.described(found, commands),
                0,
                f"{found} " if _is_word(found, commands) else found,
            )
            for found in slash.suggestions(line, commands)
        ]
    match = _MENTION.search(line)
    return _files(match[1], match.start(1), folder or Path.cwd()) if match else []


def is_complete(line: str, commands: Sequence[Command], folder: Path | None = None) -> bool:
    """Whether the line is complete as it is, so that Enter sends instead of completing."""
    if line.startswith("/"):
        word, _, argument = line[1:].partition(" ")
        last = argument.rpartition(" ")[2]
        command = slash.find(word, commands)
        if command is None:
            return False
        return not last or command.values is None or last in command.values() or "=" in last[:-1]
    match = _MENTION.search(line)
    return (
        match is None or not match[1] or ((folder or Path.cwd()) / expand_user(match[1].strip('"'))).is_file()
    )


def _is_word(line: str, commands: Sequence[Command]) -> bool:
    return slash.find(line[1:], commands) is not None


def _files(written: str, start: int, folder: Path) -> list[Completion]:
    """Files and folders whose path begins with ``written``."""
    path = written.removeprefix('"')
    head, separator, prefix = path.rpartition("/")
    directory = folder / expand_user(head + separator)
    try:
        with os.scandir(directory) as found:
            entries = sorted(
                (not entry.is_dir(), entry.name)
                for entry in itertools.islice(found, MAX_FOLDER_ENTRIES)
                if entry.name.lower().startswith(prefix.lower())
                and (prefix.startswith(".") or not entry.name.startswith("."))
            )
    except OSError:
        return []
    completed: list[Completion] = []
    for is_file, name in entries:
        target = f"{head}{separator}{name}" + ("" if is_file else "/")
        quoted = " " in target or written.startswith('"')
        end = (" " if is_file else "") if not quoted else ('" ' if is_file else "")
        insert = ('"' if quoted else "") + target + end
        # Other names cannot be written in the prompt.
        if '"' not in name and single_line(name) == name:
            completed.append(Completion(f"@{target}", "" if is_file else "folder", start, insert))
    return completed
