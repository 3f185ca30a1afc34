"""The Markdown parsers. What is drawn and what is copied as code is found by the same rules.

They follow CommonMark with GitHub's tables, with differences that keep every word visible as it was written:
HTML and link reference definitions are text, LaTeX is taken as it is, emphasis works beside CJK punctuation,
table rows keep cells beyond the header's, and addresses are not encoded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, blockquote, list_block
from markdown_it.rules_inline import emphasis, strikethrough

from tqchat.ui.markdown import latex, tables
from tqchat.ui.markdown.emphasis import beside_cjk

_MAX_NESTING = 20
"""Depth, two a list and one a quote, from which the marks of both are text. Below its own limit, markdown-it
drops the rest of the document."""


class _Parser(MarkdownIt):
    """Leaves addresses as they were written."""

    def normalizeLink(self, url: str) -> str:
        return url

    def normalizeLinkText(self, link: str) -> str:
        return link


@cache
def inline_parser() -> MarkdownIt:
    """Parses the text of a paragraph."""
    parser = _Parser("gfm-like", {"html": False})
    parser.inline.ruler.before("escape", "latex", latex.inline)
    parser.inline.ruler.at("emphasis", beside_cjk(emphasis.tokenize))
    parser.inline.ruler.at("strikethrough", beside_cjk(strikethrough.tokenize))
    return parser


@cache
def block_parser() -> MarkdownIt:
    """Parses a document into blocks, whose text it leaves as it is."""
    parser = _Parser("gfm-like", {"html": False, "maxNesting": _MAX_NESTING + 2})
    parser.disable(["inline", "linkify", "text_join", "reference"], True)
    parser.block.ruler.before("fence", "latex", latex.block, {"alt": ["paragraph", "blockquote", "list"]})
    parser.block.ruler.at("table", tables.table, {"alt": ["paragraph", "reference"]})
    interrupted = ["paragraph", "reference", "blockquote"]
    parser.block.ruler.at("list", _nested(list_block), {"alt": interrupted})
    parser.block.ruler.at("blockquote", _nested(blockquote), {"alt": [*interrupted, "list"]})
    return parser


def _nested(
    rule: Callable[[StateBlock, int, int, bool], bool],
) -> Callable[[StateBlock, int, int, bool], bool]:
    """A rule for blocks that contain others, which ends at ``_MAX_NESTING``."""

    def limited(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
        return state.level < _MAX_NESTING and rule(state, start_line, end_line, silent)

    return limited
