"""Rules for LaTeX in Markdown: it is kept as it was written, delimiters included."""

from __future__ import annotations

import re

from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

BLOCK, INLINE = "latex_block", "latex_inline"
"""Token types; the content is the source."""
OPEN = "open"
_DOLLARS = re.compile(r"\$\$(?:[^$\\]|\\.)++\$\$|\$(?!\s)(?:[^$`\\]|\\.)++(?<!\s)\$(?!\d)", re.DOTALL)
"""As in Pandoc, so that prices are no formulas: no space inside the dollars, no digit behind the last."""
_BRACKETS = {"\\(": "\\)", "\\[": "\\]"}
_ENVIRONMENT = re.compile(r"\\begin\{([A-Za-z]+\*?)\}")
_CLOSINGS = {"$$": "$$", "\\[": "\\]"}
_OPENS_BLOCK = re.compile(r"\$\$|\\\[|\\begin\{([A-Za-z]+\*?)\}")


def inline(state: StateInline, silent: bool) -> bool:
    """``$x$``, ``$$x$$``, ``\\(x\\)``, ``\\[x\\]`` and environments within a paragraph."""
    end = _inline_end(state.src, state.pos)
    if end is None or end > state.posMax:
        return False
    if not silent:
        token = state.push(INLINE, "", 0)
        token.content = state.src[state.pos : end]
    state.pos = end
    return True


def _inline_end(text: str, begin: int) -> int | None:
    if text[begin] == "$":
        match = _DOLLARS.match(text, begin)
        return match.end() if match else None
    if text[begin] != "\\":
        return None
    closing = _BRACKETS.get(text[begin : begin + 2])
    if closing is None and (opening := _ENVIRONMENT.match(text, begin)):
        closing = f"\\end{{{opening[1]}}}"
    found = text.find(closing, begin + 2) if closing else -1
    return found + len(closing) if closing and found >= 0 else None


def block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """A formula or an environment that begins a line; it ends with the line of its closing delimiter.

    An environment, or a formula whose delimiter has a line of its own, goes on to the end without one, as a
    code fence does. Another formula cannot hold an empty line: one that is not closed before it is none. At
    the end of the document it may still be closed: then the token has ``OPEN`` as its info.
    """
    if state.is_code_block(start_line):
        return False
    first = _line(state, start_line)
    opening = _OPENS_BLOCK.match(first)
    if opening is None:
        return False
    closing = f"\\end{{{opening[1]}}}" if opening[1] else _CLOSINGS[opening[0]]
    inside = first[opening.end() :]
    at = inside.find(closing)
    if at >= 0 and not opening[1] and inside[at + len(closing) :].strip(" \t.,;:"):
        return False  # a sentence that begins with a formula
    line, info = start_line + 1, ""
    if at < 0:
        is_fence = bool(opening[1]) or not inside.strip()
        found = _last_line(state, closing, line, end_line, is_fence)
        if found is None:
            return False
        line, is_open = found
        info = OPEN if is_open and not is_fence else ""
    if not silent:
        token = state.push(BLOCK, "", 0)
        token.info = info
        token.content = state.getLines(start_line, line, state.blkIndent, False).rstrip("\n")
        token.map = [start_line, line]
        state.line = line
    return True


def _last_line(
    state: StateBlock, closing: str, line: int, end_line: int, is_fence: bool
) -> tuple[int, bool] | None:
    """The line after the formula, and whether it is not closed; ``None`` if it is no formula."""
    unclosed: dict[str, int] = state.env.setdefault("unclosed formulas", {})
    if not is_fence and line <= unclosed.get(closing, 0):
        return None  # found before, for a formula that begins above
    is_cut = False
    while line < end_line and not is_cut:
        if closing in _line(state, line):
            return line + 1, False
        # Before an empty line that is complete, or the end of the list item.
        if state.isEmpty(line):
            is_cut = not is_fence and state.eMarks[line] < len(state.src)
        else:
            is_cut = state.sCount[line] < state.blkIndent
        line += not is_cut
    if is_fence or (not is_cut and state.eMarks[line - 1] >= len(state.src.rstrip())):
        return line, True
    unclosed[closing] = line
    return None


def _line(state: StateBlock, line: int) -> str:
    return state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]]
