"""Syntax highlighting of code blocks, in the colours that the theme has for code."""

from __future__ import annotations

from collections.abc import Iterator

from pygments.token import Token
from textual.content import Content
from textual.highlight import HighlightTheme, highlight

MAX_HIGHLIGHTED_CHARACTERS = 40_000
"""Longer code blocks are not highlighted."""
HIGHLIGHTED_AT_ONCE = 4_000
"""Characters of a long code block that are highlighted together."""


class _Colours(HighlightTheme):
    """The theme variables of kinds of tokens; a kind that is not listed has its parent's."""

    STYLES = {
        Token.Comment: "$code-comment italic",
        Token.Literal.String.Doc: "$code-comment italic",
        Token.Keyword: "$code-keyword",
        Token.Keyword.Constant: "$code-number",
        Token.Keyword.Type: "$code-builtin",
        Token.Operator.Word: "$code-keyword",
        Token.Literal.Number: "$code-number",
        Token.Literal.String: "$code-string",
        Token.Literal.String.Interpol: "$code-builtin",
        Token.Name.Attribute: "$code-name",
        Token.Name.Builtin: "$code-builtin",
        Token.Name.Class: "$code-name",
        Token.Name.Constant: "$code-number",
        Token.Name.Decorator: "$code-name",
        Token.Name.Exception: "$code-builtin",
        Token.Name.Function: "$code-name",
        Token.Name.Tag: "$code-name",
        Token.Name.Variable: "$code-name",
        Token.Generic.Deleted: "$code-keyword",
        Token.Generic.Emph: "italic",
        Token.Generic.Heading: "$code-name bold",
        Token.Generic.Inserted: "$code-string",
        Token.Generic.Prompt: "$code-comment",
        Token.Generic.Strong: "bold",
        Token.Generic.Subheading: "$code-name",
    }


def highlighted(text: str, language: str) -> Content:
    """A code block's text; plain if its language is not known or it is very long."""
    if not language or len(text) > MAX_HIGHLIGHTED_CHARACTERS:
        return Content(text)
    return Content("\n").join(_parts(text, language))


def _parts(text: str, language: str) -> Iterator[Content]:
    """The parts of a text, highlighted one by one: many lexers take time quadratic in the length."""
    lines = text.split("\n")
    begin, size = 0, 0
    for number, line in enumerate(lines):
        size += len(line) + 1
        last = number == len(lines) - 1
        # Preferably between paragraphs: a string or comment that is cut is highlighted wrongly.
        if last or size > HIGHLIGHTED_AT_ONCE or (size > HIGHLIGHTED_AT_ONCE // 2 and not line.strip()):
            part = "\n".join(lines[begin : number + 1])
            if size > 2 * HIGHLIGHTED_AT_ONCE:
                yield Content(part)
            else:
                # highlight() drops line breaks at the end, and counts a tab as several characters.
                code = part.rstrip("\n")
                coloured = highlight(code, language=language, theme=_Colours, tab_size=0)
                yield Content.assemble(coloured, part[len(code) :])
            begin, size = number + 1, 0
