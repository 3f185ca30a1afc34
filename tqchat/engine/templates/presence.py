"""Checks that a rendered prompt contains the messages."""

from __future__ import annotations

import html
import json
import re

_SWITCHES = re.compile(r"/(?:no_?)?think\b|detailed thinking (?:on|off)", re.IGNORECASE)
_MAX_WORDS = 1_000
_PARTS = re.compile(r"""\{['"]type['"]: ?['"]text['"]""")


class Presence:
    """Looks for contents in a prompt, whatever the template does to white space, case and escapes."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._flat = _flattened(prompt)

    def of(self, content: str) -> bool:
        """Whether a text is there; words that switch reasoning may be missing, as templates remove them."""
        if _flattened(content) in self._flat:
            return True
        as_json = json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1]
        for text in (*as_json, html.escape(content)):
            if _flattened(text) in self._flat:
                return True
        return _flattened(_SWITCHES.sub(" ", content)) in _flattened(_SWITCHES.sub(" ", self._prompt))

    def of_most(self, content: str) -> bool:
        """Whether at least half of a text's words are there; of a long text, of some of them."""
        words = content.split()
        words = words[:: 1 + len(words) // _MAX_WORDS]
        return sum(word.casefold() in self._flat for word in words) * 2 >= len(words)

    def of_parts_as_code(self, *contents: str) -> bool:
        """Whether a template that expects text wrote a list of content parts as Python or JSON."""
        written = len(_PARTS.findall(self._prompt))
        return written > sum(len(_PARTS.findall(content)) for content in contents)


def _flattened(text: str) -> str:
    return " ".join(text.split()).casefold()
