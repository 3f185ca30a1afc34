"""Completion in the prompt: slash commands, their arguments, files after an @."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqchat.paths import expand_user, working_folder
from tqchat.text import single_line
from tqchat.ui.input import slash
from tqchat.ui.input.attachments import kind_of
from tqchat.ui.input.file_tree import Ignored, fuzzy_matches
from tqchat.ui.input.slash import Command

MAX_FOLDER_ENTRIES = 2_000
"""Entries of a folder that are searched."""
_ELSEWHERE = ("/", "~", ".")
"""Beginnings of paths that are completed folder by folder: not below the start folder, or hidden."""
_MENTION = re.compile(r'(?:^|[\s(])@("[^"]*|[^\s"]*)$')


@dataclass(frozen=True)
class Completion:
    """One completion: ``insert`` replaces the line from ``start`` to the cursor.

    ``continues``: what is written is its beginning, not only contained in it.
    """

    label: str
    help: str
    start: int
    insert: str
    continues: bool = True


def completions(
    line: str,
    commands: Sequence[Command],
    *,
    first_line: bool = True,
    folder: Path | None = None,
    paths: Sequence[str] = (),
) -> list[Completion]:
    """The completions of ``line``, the text before the cursor. ``paths``: those below ``folder``."""
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
    written = mention(line)
    if written is None:
        return []
    found = _files(written, folder or working_folder())
    name = written.removeprefix('"')
    if name and not name.startswith(_ELSEWHERE):
        found += [path for path in fuzzy_matches(name, paths) if path not in found and path != name]
    start = len(line) - len(written)
    # Other names cannot be written in the prompt.
    return [
        _completion(path, written, start) for path in found if '"' not in path and single_line(path) == path
    ]


def mention(line: str) -> str | None:
    """The incomplete path after an ``@`` at the end of a line; ``None`` if there is no such ``@``."""
    match = _MENTION.search(line)
    return match[1] if match else None


def is_complete(line: str, commands: Sequence[Command], folder: Path | None = None) -> bool:
    """Whether the line is complete as it is, so that Enter sends instead of completing."""
    if line.startswith("/"):
        word, _, argument = line[1:].partition(" ")
        last = argument.rpartition(" ")[2]
        command = slash.find(word, commands)
        if command is None:
            return False
        return not last or command.values is None or last in command.values() or "=" in last[:-1]
    written = mention(line)
    return not written or kind_of((folder or working_folder()) / expand_user(written.strip('"'))) == "file"


def _is_word(line: str, commands: Sequence[Command]) -> bool:
    return slash.find(line[1:], commands) is not None


def _completion(path: str, written: str, start: int) -> Completion:
    is_file = not path.endswith("/")
    quoted = " " in path or written.startswith('"')
    end = (" " if is_file else "") if not quoted else ('" ' if is_file else "")
    continues = path.lower().startswith(written.removeprefix('"').lower())
    insert = ('"' if quoted else "") + path + end
    return Completion(f"@{path}", "" if is_file else "folder", start, insert, continues)


def _files(written: str, folder: Path) -> list[str]:
    """Paths in one folder that begin with ``written``; those of folders end with a slash."""
    path = written.removeprefix('"')
    head, separator, prefix = path.rpartition("/")
    directory = folder / expand_user(head + separator)
    ignored = Ignored.of(directory)
    try:
        with os.scandir(directory) as found:
            entries = sorted(
                (not entry.is_dir(), entry.name)
                for entry in itertools.islice(found, MAX_FOLDER_ENTRIES)
                if entry.name.lower().startswith(prefix.lower())
                and (prefix.startswith(".") or not entry.name.startswith("."))
                and not ignored.excludes(entry.name, entry.is_dir())
            )
    except OSError:
        return []
    return [f"{head}{separator}{name}" + ("" if is_file else "/") for is_file, name in entries]
