"""Finding words in titles and messages."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

from tqchat.store.database_file import DatabaseFile
from tqchat.store.records import SearchHit
from tqchat.store.rows import storable
from tqchat.text import one_line

SHORTEST_INDEXED = 3
"""Characters in an entry of the index; shorter words (many of Chinese) are found by reading everything."""

LONGEST_TEXT, MOST_WORDS = 500, 16
_BEFORE, _LINE = 40, 160
_WORD = re.compile(r'"([^"]*)"?|([^\s"]+)')

_COLUMNS = "c.id AS conversation_id, c.title, m.id AS message_id, m.role, m.created_at, m.content"
_MESSAGES = "messages m JOIN conversations c ON c.id = m.conversation_id"
_TITLES = "c.id AS conversation_id, c.title, NULL AS message_id, NULL AS role, c.updated_at AS created_at"


def words(text: str) -> list[str]:
    """What a person looks for: single words, and what stands between double quotes as it is."""
    text = storable(text).replace("\0", " ")[:LONGEST_TEXT]
    found = [quoted.strip() or word for quoted, word in _WORD.findall(text)]
    return [word for word in dict.fromkeys(found) if word][:MOST_WORDS]


def search(file: DatabaseFile, text: str, limit: int) -> list[SearchHit]:
    """Titles, then messages, that hold every word of the text: the best matches first, then the newest."""
    wanted = words(text)
    if not wanted:
        return []
    hits: list[SearchHit] = []
    with file.reading():
        for query, values in (_titles(wanted), _finished(wanted), _unfinished(wanted)):
            if (left := limit - len(hits)) <= 0:
                break
            found = file.rows(f"{query} LIMIT ?", *values, left)
            hits += [_hit(row, wanted) for row in found]
    return hits


def _titles(wanted: Sequence[str]) -> tuple[str, list[str]]:
    where, values = _holds("c.title", wanted, "titles_index")
    if _match(wanted):
        source = "titles_index JOIN conversations c ON c.number = titles_index.rowid"
        order = "titles_index.rank, c.updated_at DESC"
    else:
        source, order = "conversations c", "c.updated_at DESC"
    return (
        f"SELECT {_TITLES}, c.title AS content FROM {source} WHERE {where} "
        f"AND c.deleted_at IS NULL ORDER BY {order}",
        values,
    )


def _finished(wanted: Sequence[str]) -> tuple[str, list[str]]:
    where, values = _holds("m.content", wanted, "messages_index")
    source, order = _MESSAGES, "m.number DESC"
    if _match(wanted):
        source = (
            "messages_index JOIN messages m ON m.number = messages_index.rowid "
            "JOIN conversations c ON c.id = m.conversation_id"
        )
        order = "messages_index.rank, m.number DESC"
    return (
        f"SELECT {_COLUMNS} FROM {source} WHERE {where} AND m.status <> 'unfinished' "
        f"AND c.deleted_at IS NULL ORDER BY {order}",
        values,
    )


def _unfinished(wanted: Sequence[str]) -> tuple[str, list[str]]:
    """These are not in the index; there are few of them, and an index of their own lists them."""
    where, values = _holds("m.content", wanted, None)
    return (
        f"SELECT {_COLUMNS} FROM {_MESSAGES} WHERE m.status = 'unfinished' AND {where} "
        "AND c.deleted_at IS NULL ORDER BY m.number DESC",
        values,
    )


def _holds(column: str, wanted: Sequence[str], index: str | None) -> tuple[str, list[str]]:
    """The condition that a column holds all words, through the index where that can be."""
    conditions: list[str] = []
    values: list[str] = []
    if index is not None and (match := _match(wanted)):
        conditions.append(f"{index} MATCH ?")
        values.append(match)
    for word in wanted:
        if index is not None and len(word) >= SHORTEST_INDEXED:
            continue
        # LIKE knows upper and lower case in ASCII only.
        forms = list(dict.fromkeys((word, word.lower(), word.upper(), word.capitalize())))
        conditions.append("(" + " OR ".join(f"{column} LIKE ? ESCAPE '\\'" for _ in forms) + ")")
        values += ["%" + re.sub(r"([\\%_])", r"\\\1", form) + "%" for form in forms]
    return " AND ".join(conditions), values


def _match(wanted: Sequence[str]) -> str:
    """The words in FTS5's language: between quotes nothing has a meaning of its own but the quote."""
    long = [word for word in wanted if len(word) >= SHORTEST_INDEXED]
    return " AND ".join('"' + word.replace('"', '""') + '"' for word in long)


def _hit(row: sqlite3.Row, wanted: Sequence[str]) -> SearchHit:
    line, marks = snippet(row["content"], wanted)
    return SearchHit(
        row["conversation_id"], row["title"], row["message_id"], row["role"], row["created_at"], line, marks
    )


def snippet(content: str, wanted: Sequence[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """One printable line around the first word found, and where the words are in it."""
    # The longest first: of two words that begin alike, the whole one is marked.
    pattern = re.compile("|".join(re.escape(word) for word in sorted(wanted, key=len, reverse=True)), re.I)
    first = pattern.search(content)
    start = max(0, (first.start() if first else 0) - _BEFORE)
    if start:
        # Not in the middle of a word, where there are spaces at all.
        space = re.search(r"\s", content[start : start + _BEFORE // 2])
        start += space.end() if space else 0
    end = start + _LINE
    line = ("… " if start else "") + one_line(content[start:end]) + (" …" if end < len(content) else "")
    return line, tuple(match.span() for match in pattern.finditer(line))
