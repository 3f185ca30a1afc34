"""The Markdown parsers. What is drawn and what is copied as code is found by the same rules."""

from __future__ import annotations

from functools import cache

from markdown_it import MarkdownIt


@cache
def inline_parser() -> MarkdownIt:
    """Parses the text of a paragraph."""
    # HTML stays text: parsed, it would vanish from the reply.
    return MarkdownIt("gfm-like", {"html": False})


@cache
def block_parser() -> MarkdownIt:
    """Parses a document into blocks, whose text it leaves as it is."""
    return MarkdownIt("gfm-like", {"html": False}).disable(["inline", "linkify", "text_join"], True)
