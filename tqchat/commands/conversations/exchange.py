"""``tqchat export``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tqchat import paths
from tqchat.commands.conversations.reading import open_for_reading
from tqchat.errors import TqchatError
from tqchat.files import write_atomically
from tqchat.store import exchange
from tqchat.store.database import Conversation, Database, UnknownConversation
from tqchat.terminal import for_data


class BadFile(TqchatError):
    """A file cannot be read or written."""

    def __init__(self, doing: str, file: str, error: OSError) -> None:
        super().__init__(f"{file} cannot be {doing} ({(error.strerror or str(error)).lower()}).")


class FileExists(TqchatError):
    """An export would replace a file."""

    def __init__(self, file: str) -> None:
        super().__init__(f"{file} exists and was not changed; --force replaces it.")


def export(
    conversation_id: str | None, *, file_format: str | None, output: str | None, force: bool = False
) -> int:
    """Write one conversation, or all of them if no id is given.

    Args:
        force: Replace the output file if it exists.

    Raises:
        UnknownConversation: if there is no such conversation.
        FileExists: if the output file exists; it is unchanged.
        BadFile: if the file cannot be written; an existing file is then unchanged.
    """
    if file_format is None:
        file_format = "json" if output is not None and output.lower().endswith(".json") else "md"
    file = paths.locate().database
    if not file.exists():
        if conversation_id is not None:
            raise UnknownConversation(conversation_id)
        raise TqchatError("There are no conversations to export yet.")
    with open_for_reading(file) as database:
        chosen = (
            database.conversations() if conversation_id is None else [database.conversation(conversation_id)]
        )
        pieces = exchange.to_json(database, chosen) if file_format == "json" else _markdown(database, chosen)
        if output is None or output == "-":
            for_data(sys.stdout).writelines(pieces)
        else:
            _write(output, pieces, force)
    return 0


def _markdown(database: Database, chosen: list[Conversation]) -> Iterator[str]:
    for index, conversation in enumerate(chosen):
        yield ("\n---\n\n" if index else "") + exchange.to_markdown(database, conversation)


def _write(name: str, pieces: Iterator[str], force: bool) -> None:
    path = Path(name)
    try:
        if path.is_file() and not force:
            raise FileExists(name)
        if path.exists() and not path.is_file():
            # Pipes and devices are written to, not replaced.
            with path.open("w", encoding="utf-8") as file:
                file.writelines(pieces)
        else:
            write_atomically(path.resolve(), "".join(pieces).encode())
    except OSError as error:
        raise BadFile("written", name, error) from error
