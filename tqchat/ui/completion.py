"""What is being written into the prompt may become: commands, their values, files behind an @."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqchat.ui import slash

MOST_FILES = 2_000
"""Entries of a folder that are looked at."""
_MENTION = re.compile(r'(?:^|\s)@("[^"]*|[^\s"]*)$')
Values = Mapping[str, Callable[[], Sequence[str]]]


@dataclass(frozen=True)
class Offer:
    """One way to go on: ``insert`` takes the place of the line from ``start`` to the cursor."""

    label: str
    help: str
    start: int
    insert: str


def offers(line: str, values: Values, *, first_line: bool = True, folder: Path | None = None) -> list[Offer]:
    """The ways to go on behind ``line``, which is what stands before the cursor."""
    if first_line and line.startswith("/"):
        return [
            Offer(found, slash.described(found), 0, found if _goes_on(found) else f"{found} ")
            for found in slash.suggestions(line, values)
        ]
    match = _MENTION.search(line)
    return _files(match[1], match.start(1), folder or Path.cwd()) if match else []


def is_whole(line: str, values: Values, folder: Path | None = None) -> bool:
    """Whether what is written means something as it is, so that Enter sends it instead of completing it."""
    if line.startswith("/"):
        name, _, argument = line[1:].partition(" ")
        last = argument.rpartition(" ")[2]
        known = values.get(name)
        return name in slash.NAMES and (not last or known is None or last in known() or "=" in last[:-1])
    match = _MENTION.search(line)
    return match is None or not match[1] or ((folder or Path.cwd()) / _home(match[1].strip('"'))).is_file()


def _goes_on(line: str) -> bool:
    return line.endswith("=") or line[1:] not in slash.NAMES


def _home(path: str) -> str:
    return os.path.expanduser(path)  # noqa: PTH111  it must not fail where there is no home


def _files(written: str, start: int, folder: Path) -> list[Offer]:
    """Files and folders whose path begins with what is written."""
    path = written.removeprefix('"')
    head, slash_, begun = path.rpartition("/")
    where = folder / _home(head + slash_)
    try:
        with os.scandir(where) as found:
            entries = sorted(
                (not entry.is_dir(), entry.name)
                for entry in itertools.islice(found, MOST_FILES)
                if entry.name.lower().startswith(begun.lower())
                and (begun.startswith(".") or not entry.name.startswith("."))
            )
    except OSError:
        return []
    made: list[Offer] = []
    for is_file, name in entries:
        whole = f"{head}{slash_}{name}" + ("" if is_file else "/")
        quoted = " " in whole or written.startswith('"')
        end = (" " if is_file else "") if not quoted else ('" ' if is_file else "")
        insert = ('"' if quoted else "") + whole + end
        if '"' not in name and "\n" not in name:
            made.append(Offer(f"@{whole}", "" if is_file else "folder", start, insert))
    return made
