"""Reading conversations where nothing can be written: on a read-only or full disk, without rights."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqchat import paths
from tqchat.files import Unreadable, open_regular, temporary_folder
from tqchat.paths import UnusableFolder
from tqchat.store.database import Conversation, Database, UnknownConversation
from tqchat.store.errors import DatabaseNotWritable, StoreFull


@contextmanager
def open_for_reading(path: Path) -> Iterator[Database]:
    """The database for commands that only read. If it cannot be written, a temporary copy is opened.

    A copy, because SQLite writes beside a file even to read it, and because a file of an older version is
    migrated first.

    Raises:
        StoreError, UnusableFolder: if it cannot be read; nothing is changed.
    """
    try:
        database = Database(path)
    except (DatabaseNotWritable, StoreFull, UnusableFolder) as error:
        with temporary_folder() as folder:
            copy = folder / path.name
            try:
                _copy(path, copy)
            except (OSError, sqlite3.Error, Unreadable):
                raise error from None
            with Database(copy) as database:
                yield database
        return
    with database:
        yield database


@contextmanager
def open_conversation(conversation_id: str) -> Iterator[tuple[Database, Conversation]]:
    """The database, for reading, and the conversation with this id or unique prefix of an id.

    Raises:
        UnknownConversation: if none or several ids match.
        StoreError, UnusableFolder: if the database cannot be read.
    """
    file = paths.locate().database
    if not file.exists():  # none is created just to look into it
        raise UnknownConversation(conversation_id)
    with open_for_reading(file) as database:
        yield database, database.conversation(conversation_id)


def _copy(path: Path, copy: Path) -> None:
    with suppress(sqlite3.Error):
        # Consistent also while another process writes.
        source = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            with sqlite3.connect(copy) as target:
                source.backup(target)
            target.close()
            return
        finally:
            source.close()
    # SQLite cannot read a write-ahead log where it cannot make its index; nobody writes there either.
    for suffix in ("", "-wal"):
        part = path.with_name(path.name + suffix)
        with (
            suppress(FileNotFoundError),
            open_regular(part) as content,
            copy.with_name(copy.name + suffix).open("wb") as file,
        ):
            shutil.copyfileobj(content, file)
