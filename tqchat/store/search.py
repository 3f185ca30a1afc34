"""Full-text search in titles and messages: FTS5 trigram index, LIKE for short words."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

from tqchat.store.database_file import DatabaseFile
from tqchat.store.records import SearchHit
from tqchat.store.rows import as_text, replace_surrogates, timestamp
from tqchat.text import one_line

MIN_INDEXED_CHARS = 3
"""Length of a trigram. Shorter words (common in Chinese) are found by a table scan."""

MAX_QUERY_CHARS, MAX_QUERY_WORDS = 500, 16
_CHARS_BEFORE_MATCH, _SNIPPET_CHARS = 40, 160
_WORD = re.compile(r'"([^"]*)"?|([^\s"]+)')

_MESSAGE_COLUMNS = (
    "c.id AS conversation_id, c.title, m.id AS message_id, m.role, m.created_at, m.content, m.reasoning"
)
_MESSAGE_TEXT = "(m.content || char(10) || coalesce(m.reasoning, ''))"
"""Scanned where the index is not used."""
_MESSAGE_SOURCE = "messages m JOIN conversations c ON c.id = m.conversation_id"
_TITLE_COLUMNS = (
    "c.id AS conversation_id, c.title, NULL AS message_id, NULL AS role, c.updated_at AS created_at"
)


def query_words(text: str) -> list[str]:
    """The search terms of a query: words, and phrases in double quotes."""
    text = replace_surrogates(text).replace("\0", " ")[:MAX_QUERY_CHARS]
    found = [quoted.strip() or word for quoted, word in _WORD.findall(text)]
    return [word for word in dict.fromkeys(found) if word][:MAX_QUERY_WORDS]


def search(file: DatabaseFile, text: str, limit: int) -> list[SearchHit]:
    """Titles, then messages, that contain every term of the text; by rank, then newest first."""
    terms = query_words(text)
    if not terms:
        return []
    hits: list[SearchHit] = []
    with file.reading():
        for query, values in (_title_query(terms), _message_query(terms), _unfinished_query(terms)):
            if (left := limit - len(hits)) <= 0:
                break
            found = file.rows(f"{query} LIMIT ?", *values, left)
            hits += [_hit(row, terms) for row in found]
    return hits


def _title_query(terms: Sequence[str]) -> tuple[str, list[str]]:
    where, values = _condition("c.title", terms, "titles_index")
    if _fts_query(terms):
        source = "titles_index JOIN conversations c ON c.number = titles_index.rowid"
        order = "titles_index.rank, c.updated_at DESC"
    else:
        source, order = "conversations c", "c.updated_at DESC"
    return (
        f"SELECT {_TITLE_COLUMNS}, c.title AS content, NULL AS reasoning FROM {source} WHERE {where} "
        f"AND c.deleted_at IS NULL ORDER BY {order}",
        values,
    )


def _message_query(terms: Sequence[str]) -> tuple[str, list[str]]:
    where, values = _condition(_MESSAGE_TEXT, terms, "messages_index")
    source, order = _MESSAGE_SOURCE, "m.number DESC"
    if _fts_query(terms):
        source = (
            "messages_index JOIN messages m ON m.number = messages_index.rowid "
            "JOIN conversations c ON c.id = m.conversation_id"
        )
        order = "messages_index.rank, m.number DESC"
    return (
        f"SELECT {_MESSAGE_COLUMNS} FROM {source} WHERE {where} AND m.status <> 'unfinished' "
        f"AND c.deleted_at IS NULL ORDER BY {order}",
        values,
    )


def _unfinished_query(terms: Sequence[str]) -> tuple[str, list[str]]:
    """Unfinished replies are not in the search index; a partial SQL index lists the few there are."""
    where, values = _condition(_MESSAGE_TEXT, terms, None)
    return (
        f"SELECT {_MESSAGE_COLUMNS} FROM {_MESSAGE_SOURCE} WHERE m.status = 'unfinished' AND {where} "
        "AND c.deleted_at IS NULL ORDER BY m.number DESC",
        values,
    )


def _condition(column: str, terms: Sequence[str], index: str | None) -> tuple[str, list[str]]:
    """WHERE clause and values: the column contains all terms, using the FTS index where possible."""
    conditions: list[str] = []
    values: list[str] = []
    if index is not None and (match := _fts_query(terms)):
        conditions.append(f"{index} MATCH ?")
        values.append(match)
    for word in terms:
        if index is not None and len(word) >= MIN_INDEXED_CHARS:
            continue
        # LIKE ignores case in ASCII only.
        forms = list(dict.fromkeys((word, word.lower(), word.upper(), word.capitalize())))
        conditions.append("(" + " OR ".join(f"{column} LIKE ? ESCAPE '\\'" for _ in forms) + ")")
        values += ["%" + re.sub(r"([\\%_])", r"\\\1", form) + "%" for form in forms]
    return " AND ".join(conditions), values


def _fts_query(terms: Sequence[str]) -> str:
    """The terms as an FTS5 query; inside quotes only the quote itself needs escaping."""
    long = [word for word in terms if len(word) >= MIN_INDEXED_CHARS]
    return " AND ".join('"' + word.replace('"', '""') + '"' for word in long)


def _hit(row: sqlite3.Row, terms: Sequence[str]) -> SearchHit:
    content, reasoning = as_text(row["content"]), row["reasoning"] and as_text(row["reasoning"])
    in_reasoning = reasoning and not _mentions(content, terms) and _mentions(reasoning, terms)
    line, marks = snippet(reasoning if in_reasoning else content, terms)
    created_at = timestamp(row["created_at"])
    return SearchHit(
        row["conversation_id"], as_text(row["title"]), row["message_id"], row["role"], created_at, line, marks
    )


def _mentions(text: str, terms: Sequence[str]) -> bool:
    return any(term.lower() in text.lower() for term in terms)


def snippet(content: str, terms: Sequence[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """One printable line around the first match, and the (start, end) of all matches in it."""
    # Longest term first, so that a term that is a prefix of another does not hide it.
    pattern = re.compile("|".join(re.escape(word) for word in sorted(terms, key=len, reverse=True)), re.I)
    first = pattern.search(content)
    start = max(0, (first.start() if first else 0) - _CHARS_BEFORE_MATCH)
    if start:
        # Start at a word boundary if there is one.
        space = re.search(r"\s", content[start : start + _CHARS_BEFORE_MATCH // 2])
        start += space.end() if space else 0
    end = start + _SNIPPET_CHARS
    line = ("… " if start else "") + one_line(content[start:end]) + (" …" if end < len(content) else "")
    return line, tuple(match.span() for match in pattern.finditer(line))
