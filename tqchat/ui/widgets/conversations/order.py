"""The order of the list of conversations: pinned ones first, the others by day, title or size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from itertools import groupby

from tqchat.store.database import Conversation
from tqchat.text import one_line
from tqchat.ui import figures

SORTS: Mapping[str, str] = {
    "changed": "the last changed first, by day",
    "created": "the newest first, by day",
    "title": "titles in alphabetical order",
    "size": "the largest cache first",
}
DEFAULT_SORT = "changed"
PINNED = "Pinned"


def grouped(
    conversations: Sequence[Conversation], sort: str, sizes: Mapping[str, int], today: date | None = None
) -> list[tuple[str, list[Conversation]]]:
    """The conversations under their headings.

    Args:
        sort: One of ``SORTS``.
        sizes: Cache bytes by conversation, where known.
    """
    day = today or date.today()

    def place(one: Conversation) -> tuple[float, str]:
        if sort == "title":
            return 0.0, one_line(one.title).casefold()
        if sort == "size":
            return -sizes.get(one.id, 0), ""
        return -(one.created_at if sort == "created" else one.updated_at), ""

    def heading(one: Conversation) -> str:
        if sort in ("title", "size"):
            return f"By {sort}"
        return figures.day(one.created_at if sort == "created" else one.updated_at, day)

    pinned = [one for one in conversations if one.pinned_at is not None]
    others = [one for one in conversations if one.pinned_at is None]
    groups = [(PINNED, sorted(pinned, key=place))] if pinned else []
    return groups + [(name, list(members)) for name, members in groupby(sorted(others, key=place), heading)]
