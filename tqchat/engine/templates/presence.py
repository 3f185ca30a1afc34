"""Whether what was said is really in a prompt."""

from __future__ import annotations

import html
import json
import re

_SWITCHES = re.compile(r"/(?:no_?)?think\b|detailed thinking (?:on|off)", re.IGNORECASE)
_PARTS = re.compile(r"""\{['"]type['"]: ?['"]text['"]""")


def is_present(content: str, prompt: str) -> bool:
    """Whether a prompt contains a text, however the template treats white space, case and escapes.

    Words that switch a model's reasoning may be missing: templates take them out.
    """
    flat = _flattened(prompt)
    for text in (content, json.dumps(content, ensure_ascii=False)[1:-1], html.escape(content)):
        if _flattened(text) in flat:
            return True
    return _flattened(_SWITCHES.sub(" ", content)) in flat


def is_mostly_present(content: str, prompt: str) -> bool:
    """Whether at least half of a text's words are in a prompt."""
    words = content.split()
    flat = _flattened(prompt)
    return sum(word.casefold() in flat for word in words) * 2 >= len(words)


def writes_parts_as_code(prompt: str, *contents: str) -> bool:
    """Whether a list of parts was written as it is in Python or JSON, by a template that wants text."""
    return len(_PARTS.findall(prompt)) > sum(len(_PARTS.findall(content)) for content in contents)


def _flattened(text: str) -> str:
    return " ".join(text.split()).casefold()
