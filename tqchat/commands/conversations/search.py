"""``tqchat search``: searches titles and messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import datetime

from tqchat import paths
from tqchat.commands.conversations.listing import SHORT_ID, UNTITLED
from tqchat.commands.conversations.reading import open_for_reading
from tqchat.errors import TqchatError
from tqchat.store.database import SearchHit
from tqchat.terminal import Control, write
from tqchat.text import one_line


class BadSearch(TqchatError):
    """An empty query, or a limit out of range."""

    exit_code = 2


def main(text: str, limit: int) -> int:
    """Print the titles and messages that contain every word of a text; returns 1 if there are none.

    Raises:
        BadSearch: if the text is empty or the limit out of range.
    """
    if not text.strip():
        raise BadSearch("There is nothing to search for; give at least one word.")
    if not 1 <= limit <= 10_000:
        raise BadSearch(f"--limit is {limit}, but must be a whole number from 1 to 10000.")
    file = paths.locate().database
    hits: list[SearchHit] = []
    # Do not create a database just to search it.
    if file.exists():
        with open_for_reading(file) as database:
            hits = database.search(text, limit)
    if not hits:
        print("Nothing was found.")
        return 1
    bold = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for hit in hits:
        when = datetime.fromtimestamp(hit.created_at).strftime("%Y-%m-%d %H:%M")
        title = one_line(hit.title) or UNTITLED
        print(f"{hit.conversation_id[:SHORT_ID]}  {when}  {title}")
        if hit.message_id is not None:
            name = "you" if hit.role == "user" else hit.role
            marks = hit.marks if bold else ()
            write(sys.stdout, f"    {name}: ", *_marked(hit.snippet, marks), "\n")
    return 0


def _marked(snippet: str, marks: Sequence[tuple[int, int]]) -> list[str]:
    """The snippet with the matches in bold."""
    parts: list[str] = []
    end = 0
    for start, stop in marks:
        parts += [snippet[end:start], Control.BOLD, snippet[start:stop], Control.NOT_BOLD]
        end = stop
    return [*parts, snippet[end:]]
