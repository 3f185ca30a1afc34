"""Strings that would control a terminal, and units whose repetition makes careless parsers slow."""

from __future__ import annotations

import re

CLIPBOARD = "\x1b]52;c;RVZJTA==\x07"
MARK = "RVZJTA"
"""The text that ``CLIPBOARD`` would put into the clipboard, as it is sent to a terminal."""
STRINGS = (
    CLIPBOARD,
    "\x1b[2J\x1b[8m",
    "\x9d52;c;RVZJTA==\x9c",
    "\x90q\x9c\x1bP1$r0m\x1b\\",
    "\x9b31m\x1bc",
    "\u202egpj\u2066x\u2069",
    "\x1b[201~",
)
NAME = "x" + "".join(STRINGS) + "y"
"""All of them in one string without line breaks."""

UNITS = (
    *"\x90\x98\x9d\x9e\x9f\x9b\x1b\x07\x9c\u0301\u200d\u202e\ud800\u2028 \n\t`*_~|>&<[](!\\#-a'\"",
    *("\x1b]", "\x1bP", "\x1b[", "\x1b[1", "\x1b ", "\x1b\x1b]", "\x90\x1b", "\x1b[201~", "\x1b]0;a\x07"),
    *("<think>", "</think>", "\n</think>", "<think", "[THINK", "``` ", "```\n", "\n\n```", "````\n```\n"),
    *("\n\nAttached file a:\n```\n", "\n\nAttached file a:\n```\nx\n```", "Attached file ", '@"', " @a"),
    *("- ", "> ", "1. ", "| a ", "[a]: ", "[a](", "![", "](", "<a ", "http://a", "a@b.", "&#", "title: "),
)

_ALLOWED = re.compile(
    r"\x1b\[[0-9;:]*[A-HJKSTfm]"  # colours, cursor, clearing
    r"|\x1b\[[<>=?][0-9;]*(?:\$p|[hlumcnq])|\x1b\[[0-9;]*(?: q|[hlnst])"  # modes and questions of Textual
    r"|\x1b\]22;[a-z-]*\x07"  # the shape of the mouse pointer
    r"|\x1b[78=>]|\x1b\(B"
)
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def unsafe_characters(drawn: bytes, *, own_sequences: bool) -> list[str]:
    """The first thing a terminal would obey, Textual's own sequences aside if those are expected."""
    text = drawn.decode("utf-8", "replace")
    if own_sequences:
        text = _ALLOWED.sub("", text)
    found = _UNSAFE.search(text)
    return [] if found is None else [text[max(0, found.start() - 60) : found.end() + 60]]
