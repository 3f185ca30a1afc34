"""GitHub's tables, whose rows keep the cells beyond the header's."""

from __future__ import annotations

import re

from markdown_it.rules_block import StateBlock
from markdown_it.rules_block.table import escapedSplit, getLine
from markdown_it.rules_block.table import table as github_table

_UNITS = re.compile(r"(`++)[^`]+\1(?!`)|\$[^$\s](?:[^$]*[^$\s])?\$|\\.|[^|]|(?P<pipe>\|)")
"""Code and formulas, in which a pipe separates no cells."""


def table(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """A table. GitHub drops cells beyond the header's; often they come from a pipe in code or a formula."""
    begin = len(state.tokens)
    if not github_table(state, start_line, end_line, silent):
        return False
    added = state.tokens[begin:]
    del state.tokens[begin:]
    columns = sum(token.type == "th_open" for token in added)
    cells: list[str] = []
    column = 0
    for token in added:
        if token.type == "tr_open" and token.map:
            cells, column = _cells(getLine(state, token.map[0]), columns), 0
        elif token.type == "tr_close":
            for text in cells[columns:]:
                state.push("td_open", "td", 1)
                state.push("inline", "", 0).content = text
                state.push("td_close", "td", -1)
        elif token.type == "inline":
            token.content = cells[column] if column < len(cells) else ""
            column += 1
        state.tokens.append(token)
    return True


def _cells(line: str, columns: int) -> list[str]:
    """The cells of a row: split as GitHub does, else outside of code and formulas if that fits the header."""
    split = _trimmed(escapedSplit(line.strip()))
    if len(split) <= columns:
        return split
    parts = [""]
    for unit in _UNITS.finditer(line.strip()):
        if unit["pipe"]:
            parts.append("")
        else:
            parts[-1] += "|" if unit[0] == "\\|" else unit[0]
    whole = _trimmed(parts)
    return whole if len(whole) == columns else split


def _trimmed(cells: list[str]) -> list[str]:
    """Cells without the empty ones outside of the first and last pipe."""
    begin = 1 if cells and not cells[0] else 0
    end = len(cells) - 1 if len(cells) > begin and not cells[-1] else len(cells)
    return [cell.strip() for cell in cells[begin:end]]
