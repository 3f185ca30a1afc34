"""What could not be stored before the app ended: kept in files, and stored at the next start."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqchat.errors import TqchatError
from tqchat.files import Unreadable, open_regular
from tqchat.paths import make_private_folder
from tqchat.store.database import Database
from tqchat.store.database_file import DatabaseFile
from tqchat.store.errors import StoreError
from tqchat.store.exchange import as_json, insert, with_new_ids
from tqchat.store.import_parser import ParsedConversation, read_conversations

_BUSY_TIMEOUT_S = 1.0
_PREFIX, _SUFFIX = "unsaved-", ".json"


def keep_conversations(database: Database, folder: Path) -> list[str]:
    """Export the conversations that are not in the file yet; sentences for the user, none if all are."""
    conversations = database.unwritten()
    if not conversations:
        return []
    # From memory alone: the file may be unreadable by now.
    content = "".join(as_json((one, database.tree(one.id)) for one in conversations))
    written = write_somewhere(content, folder, _SUFFIX)
    if written is None:
        return ["This could not be stored anywhere:", content]
    if written.parent == folder:
        return [
            f"The last messages could not be stored; they are in {written}, and the next start stores them."
        ]
    return [f"The last messages could not be stored; `tqchat import {written}` stores them."]


def write_somewhere(content: str, folder: Path, suffix: str) -> Path | None:
    """Write a new private file in a folder, else in the one for temporary files; ``None`` if both fail."""
    for place in (folder, Path(tempfile.gettempdir())):
        try:
            if place == folder:
                make_private_folder(folder)
            descriptor, name = tempfile.mkstemp(suffix, _PREFIX, place)
        except (OSError, TqchatError):
            continue
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            Path(name).unlink(missing_ok=True)
            continue
        return Path(name)
    return None


def restore(path: Path, folder: Path) -> list[str]:
    """Store in a database what earlier runs kept in a folder; sentences for the user."""
    kept = sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}"))
    if not kept:
        return []
    said: list[str] = []
    try:
        with DatabaseFile(path, _BUSY_TIMEOUT_S) as file:
            for one in kept:
                try:
                    with open_regular(one) as content:
                        kept_conversations = list(read_conversations(content))
                    _store(file, kept_conversations, one.stat().st_mtime)
                    one.unlink(missing_ok=True)
                except OSError as error:
                    said.append(f"{one} cannot be read ({(error.strerror or str(error)).lower()}).")
                except (StoreError, Unreadable) as error:
                    said.append(f"{one} is not stored yet: {error}")
                else:
                    said.append("What could not be stored at the last end is stored now.")
    except StoreError:
        pass  # the app opens the same file next, and says why it cannot
    return said


def _store(file: DatabaseFile, conversations: Sequence[ParsedConversation], saved_at: float) -> None:
    """Put conversations in the place of their older states; one with newer messages gets a copy beside it."""
    with file.writing() as connection:
        for one in conversations:
            ids = {message.id for message in one.messages}
            here = file.rows(
                "SELECT id, created_at FROM messages WHERE conversation_id = ?", one.conversation.id
            )
            if any(row["id"] not in ids and row["created_at"] > saved_at for row in here):
                insert(connection, with_new_ids(one))
                continue
            connection.execute("UPDATE conversations SET head_id = NULL WHERE id = ?", (one.conversation.id,))
            connection.execute("DELETE FROM conversations WHERE id = ?", (one.conversation.id,))
            insert(connection, one)
