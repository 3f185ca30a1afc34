"""The files below a folder that ``.gitignore`` does not exclude, and fuzzy search in their paths."""

from __future__ import annotations

import fnmatch
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqchat.files import Unreadable, read_bytes

MAX_PATHS = 20_000
MAX_SECONDS = 3.0
"""A larger tree is searched in part, the folders nearest to the start first."""
MAX_MATCHES = 50
_MAX_IGNORE_BYTES, _MAX_RULES = 1 << 16, 1_000
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True)
class _Rule:
    """One line of a ``.gitignore``: a pattern for each part of a path, ``None`` for ``**``."""

    parts: tuple[re.Pattern[str] | None, ...]
    only_folders: bool
    keeps: bool

    def matches(self, path: Sequence[str]) -> bool:
        """Whether the rule is about a path, given by its parts below the file's folder."""
        reached = _after_stars({0}, self.parts)
        for name in path:
            reached = {
                at if part is None else at + 1
                for at in reached
                if at < len(self.parts) and ((part := self.parts[at]) is None or part.match(name))
            }
            reached = _after_stars(reached, self.parts)
        return len(self.parts) in reached


def _after_stars(reached: set[int], parts: Sequence[re.Pattern[str] | None]) -> set[int]:
    """These positions in a pattern, and those reached from them where ``**`` stands for nothing."""
    found = set(reached)
    for at in reached:
        while at < len(parts) and parts[at] is None:
            at += 1
            found.add(at)
    return found


def _rule(line: str) -> _Rule | None:
    """The rule of a line; ``None`` for comments and blank lines."""
    text = line.rstrip("\r\n")
    while text.endswith(" ") and not text.endswith("\\ "):
        text = text[:-1]
    if not text or text.startswith("#"):
        return None
    keeps = text.startswith("!")
    text = text.removeprefix("!") if keeps else text
    only_folders, text = text.endswith("/"), text.rstrip("/")
    names = text.removeprefix("/").split("/")
    if "/" not in text:
        names.insert(0, "**")
    if names == [""]:
        return None
    parts = tuple(None if name == "**" else re.compile(fnmatch.translate(_escaped(name))) for name in names)
    if parts[-1] is None:  # "a/**": everything in it, not the folder itself
        parts = (*parts, re.compile(""))
    return _Rule(parts, only_folders, keeps)


def _escaped(name: str) -> str:
    """Escaped and negated characters as ``fnmatch`` writes them."""
    name = name.replace("[^", "[!")
    return _ESCAPED.sub(lambda found: f"[{found[1]}]" if found[1] in "*?[" else found[1], name)


@dataclass(frozen=True)
class _IgnoreFile:
    """The rules of a ``.gitignore``, and the number of parts of a path above its folder."""

    rules: tuple[_Rule, ...]
    depth: int


class Ignored:
    """The rules in force in a folder: those of the folders above it, up to the repository's, and its own."""

    def __init__(self, files: tuple[_IgnoreFile, ...] = (), parts: tuple[str, ...] = ()) -> None:
        self._files, self._parts = files, parts

    @classmethod
    def of(cls, folder: Path) -> Ignored:
        """The rules in force in a folder."""
        try:
            folder = folder.resolve()
            chain = [folder, *folder.parents]
            root = next((at for at, one in enumerate(chain) if (one / ".git").exists()), 0)
        except OSError:
            return cls()
        top = chain[root]
        found = cls(_ignore_file(top / ".git" / "info" / "exclude", 0))._with(top)
        for one in reversed(chain[:root]):
            found = found.below(one.name, one)
        return found

    def below(self, name: str, folder: Path) -> Ignored:
        """The rules in a folder in this one."""
        return Ignored(self._files, (*self._parts, name))._with(folder)

    def _with(self, folder: Path) -> Ignored:
        more = _ignore_file(folder / ".gitignore", len(self._parts))
        return Ignored((*self._files, *more), self._parts) if more else self

    def excludes(self, name: str, is_folder: bool) -> bool:
        """Whether an entry of the folder is ignored: the last rule about it decides."""
        path = (*self._parts, name)
        for file in reversed(self._files):
            for rule in reversed(file.rules):
                if (is_folder or not rule.only_folders) and rule.matches(path[file.depth :]):
                    return not rule.keeps
        return False


def _ignore_file(path: Path, depth: int) -> tuple[_IgnoreFile, ...]:
    try:
        text = read_bytes(path, _MAX_IGNORE_BYTES).decode("utf-8", "replace")
    except (OSError, Unreadable):
        return ()
    lines = text.splitlines()[:_MAX_RULES]
    return (_IgnoreFile(tuple(rule for line in lines if (rule := _rule(line))), depth),)


def paths_below(folder: Path) -> list[str]:
    """Relative paths of the files and folders below a folder; those of folders end with a slash.

    Hidden and ignored ones are left out, links to folders are not followed.
    """
    deadline = time.monotonic() + MAX_SECONDS
    found: list[str] = []
    folders = deque([("", Ignored.of(folder))])
    while folders and len(found) < MAX_PATHS and time.monotonic() < deadline:
        prefix, ignored = folders.popleft()
        for name, is_folder in _entries(folder / prefix):
            if name.startswith(".") or ignored.excludes(name, is_folder):
                continue
            path = f"{prefix}{name}{'/' if is_folder else ''}"
            found.append(path)
            if is_folder:
                folders.append((path, ignored.below(name, folder / path)))
    return found[:MAX_PATHS]


def _entries(folder: Path) -> Iterator[tuple[str, bool]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry.name, entry.is_dir(follow_symlinks=False)
    except OSError:
        return


def fuzzy_matches(written: str, paths: Sequence[str]) -> list[str]:
    """The paths that have the written characters in this order, best first."""
    wanted = written.lower()
    # Each character excludes itself from the gap before it, so that nothing is tried twice.
    in_order = re.compile("".join(f"[^{re.escape(one)}]*+{re.escape(one)}" for one in wanted))
    found: list[tuple[tuple[bool, bool, bool, int, int], str]] = []
    for path in paths:
        lower = path.lower()
        if in_order.match(lower):
            name = lower.rstrip("/").rpartition("/")[2]
            rank = (
                not name.startswith(wanted),
                wanted not in name,
                wanted not in lower,
                path.count("/"),
                len(path),
            )
            found.append((rank, path))
    return [path for _, path in sorted(found)[:MAX_MATCHES]]
