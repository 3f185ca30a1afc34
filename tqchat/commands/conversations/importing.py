"""``tqchat import``: adds conversations of tqchat and of other programs."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tqchat import paths
from tqchat.commands.conversations.exchange import BadFile
from tqchat.commands.conversations.listing import SHORT_ID, UNTITLED
from tqchat.files import temporary_folder
from tqchat.store import exchange
from tqchat.store.database import Database
from tqchat.store.imports.json_stream import MAX_FILE_BYTES, BadImport
from tqchat.store.imports.sources import OWN, Found, SourceFile, files_of, read_file
from tqchat.text import one_line

_NOTES = {
    "added": "",
    "copied": "  (imported under a new id: another conversation has its id)",
    "restored": "  (restored: it had been deleted)",
    "skipped": "  (skipped: already here)",
    "in use": "  (skipped: its new messages cannot be added while it is open in another tqchat)",
}
_MAX_PROBLEMS = 20


_Into = tuple[Database, sqlite3.Connection]


class _DryRun(Exception):
    """Ends the transaction of a dry run, which undoes it."""


class _Summary:
    """What an import has done so far.

    Attributes:
        lines: One for each conversation.
        problems: Sentences about what cannot be read.
        empty: Sentences about what is left out.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.problems: list[str] = []
        self.empty: list[str] = []
        self._outcomes: Counter[str] = Counter()
        self._sources: dict[str, Counter[str]] = {}

    def add(self, source: str, imported: exchange.Imported, branches: int) -> None:
        """Count a conversation."""
        title = one_line(imported.conversation.title) or UNTITLED
        if imported.outcome == "extended":
            note = f"  ({_number(imported.messages, 'new message')})"
        else:
            note = _NOTES[imported.outcome]
        self.lines.append(f"{imported.conversation.id[:SHORT_ID]}  {title}{note}")
        self._outcomes[imported.outcome] += 1
        if source != OWN:
            self._sources.setdefault(source, Counter()).update(
                conversations=1, messages=imported.messages, branches=branches
            )

    def join(self, part: _Summary, name: str) -> None:
        """Add what was imported from one file of a folder."""
        self.lines += part.lines
        self.empty += part.empty
        self.problems += (f"{one_line(name)}: {problem}" for problem in part.problems)
        self._outcomes.update(part._outcomes)
        for source, count in part._sources.items():
            self._sources.setdefault(source, Counter()).update(count)

    @property
    def found(self) -> bool:
        """Whether there was any conversation."""
        return bool(self.lines)

    def counts(self, dry_run: bool) -> Iterator[str]:
        """Sentences with what was found and done."""
        for source, count in self._sources.items():
            yield (
                f"{source}: {_number(count['conversations'], 'conversation')}, "
                f"{_number(count['messages'], 'new message')}, "
                f"{_number(count['branches'], 'other version')}."
            )
        here = self._outcomes["skipped"] + self._outcomes["in use"]
        extended = self._outcomes["extended"]
        new = self._outcomes.total() - here - extended
        more = f", {extended} {'would be ' if dry_run else ''}extended" if extended else ""
        left_out = f", {len(self.empty)} without messages" if self.empty else ""
        wrong = f", {len(self.problems)} cannot be read" if self.problems else ""
        done = "would be imported" if dry_run else "imported"
        yield f"{new} {done}, {here} already here{more}{left_out}{wrong}."
        if dry_run:
            yield "Nothing was changed."


def main(name: str, *, dry_run: bool) -> int:
    """Import all conversations of a file or a folder; returns 1 if some cannot be read.

    Raises:
        BadFile: if the file cannot be read.
        BadImport: if it is damaged or holds no conversations; nothing is imported then.
    """
    summary, path = _Summary(), Path(name)
    now = time.time()
    try:
        with _transaction(dry_run) as into:
            if name != "-" and path.is_dir():
                for file in files_of(path, now):
                    _import_part(into, file, summary)
            else:
                with _opened(name) as opened:
                    is_file = name != "-" and path.is_file()
                    changed_at = path.stat().st_mtime if is_file else None
                    shown = path.name if is_file else "Standard input"
                    _import_all(into, read_file(opened, shown, now, changed_at), summary)
            if not summary.found:
                reasons = [*summary.problems, *summary.empty] or ["there are no conversations in it"]
                raise BadImport("; ".join(reasons[:3]))
    except OSError as error:
        raise BadFile("read", name, error) from error
    for line in (*summary.lines, *summary.counts(dry_run)):
        print(line)
    for problem in summary.problems[:_MAX_PROBLEMS]:
        print(f"tqchat: {problem}.", file=sys.stderr)
    if len(summary.problems) > _MAX_PROBLEMS:
        print(f"tqchat: {len(summary.problems) - _MAX_PROBLEMS} more cannot be read.", file=sys.stderr)
    return 1 if summary.problems else 0


@contextmanager
def _transaction(dry_run: bool) -> Iterator[_Into]:
    """The database and its connection in a transaction. A dry run undoes it, and creates no database."""
    file = paths.locate().database
    with ExitStack() as stack:
        if dry_run and not file.exists():
            file = stack.enter_context(temporary_folder()) / file.name
        database = stack.enter_context(Database(file))
        with suppress(_DryRun), database.writing() as connection:
            yield database, connection
            if dry_run:
                raise _DryRun


def _import_part(into: _Into, file: SourceFile, summary: _Summary) -> None:
    """Import one file of a folder; of a damaged one nothing, and the others are imported all the same."""
    part = _Summary()
    _, connection = into
    connection.execute("SAVEPOINT file")
    try:
        _import_all(into, file.read(), part)
    except BadImport as error:
        connection.execute("ROLLBACK TO file")
        summary.problems.append(f"{one_line(file.name)}: {error.reason}")
    else:
        summary.join(part, file.name)
    connection.execute("RELEASE file")


def _import_all(into: _Into, found: Iterator[Found], summary: _Summary) -> None:
    for one in found:
        if one.parsed is None:
            (summary.empty if one.is_empty else summary.problems).append(one.problem)
            continue
        add = exchange.add if one.source == OWN else exchange.merge
        parents = [message.parent_id for message in one.parsed.messages]
        summary.add(one.source, add(*into, one.parsed), len(parents) - len(set(parents)))


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    """The file, or standard input; a pipe is copied, for an export is read twice."""
    if name == "-":
        with _spooled(sys.stdin.buffer) as copy:
            yield copy
        return
    with Path(name).open("rb") as file:
        if file.seekable():
            yield file
            return
        with _spooled(file) as copy:
            yield copy


def _spooled(stream: BinaryIO) -> BinaryIO:
    file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
    # One byte more than allowed is enough to detect a file that is too large.
    left = MAX_FILE_BYTES + 1
    while left and (piece := stream.read(min(left, 1 << 20))):
        file.write(piece)
        left -= len(piece)
    file.seek(0)
    return file


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
