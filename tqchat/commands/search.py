"""``tqchat search``: searches titles and messages."""

from __future__ import annotations

import os
import sys
from datetime import datetime

from tqchat import paths
from tqchat.commands.listing import SHORT_ID, UNTITLED
from tqchat.errors import TqchatError
from tqchat.store.database import Database, SearchHit
from tqchat.text import one_line

_BOLD, _PLAIN = "\x1b[1m", "\x1b[22m"


class BadSearch(TqchatError):
    """An empty query, or a limit out of range."""

    exit_code = 2


def main(text: str, limit: int) -> int:
    """Print the titles and messages that contain every word of a text.

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
        with Database(file) as database:
            hits = database.search(text, limit)
    if not hits:
        print("Nothing was found.")
    bold = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for hit in hits:
        when = datetime.fromtimestamp(hit.created_at).strftime("%Y-%m-%d %H:%M")
        title = one_line(hit.title) or UNTITLED
        print(f"{hit.conversation_id[:SHORT_ID]}  {when}  {title}")
        if hit.message_id is not None:
            name = "you" if hit.role == "user" else hit.role
            print(f"    {name}: {_marked(hit) if bold else hit.snippet}")
    return 0


def _marked(hit: SearchHit) -> str:
    """The snippet (already printable) with the matches in bold."""
    parts: list[str] = []
    end = 0
    for start, stop in hit.marks:
        parts += [hit.snippet[end:start], _BOLD, hit.snippet[start:stop], _PLAIN]
        end = stop
    return "".join([*parts, hit.snippet[end:]])
