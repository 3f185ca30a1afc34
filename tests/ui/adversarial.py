"""Texts that could control the terminal or break the layout: escapes, markup, unusual characters, extreme lengths."""

# ruff: noqa: E501

from __future__ import annotations

import itertools

ESCAPES = [
    "\x1b[31mred\x1b[0m", "\x1b[2J\x1b[H", "\x1b[?1049h", "\x1b]0;stolen title\x07", "\x1b]52;c;cGFzdGU=\x07",
    "\x1b]8;;http://evil.com\x1b\\click\x1b]8;;\x1b\\", "\x9b31m", "\x1bPq#0;2;0;0;0\x1b\\", "\x1b_Gf=24;AAAA\x1b\\",
    "\x1bc", "\x1b(0", "\x1b[6n", "\x1b[5;5H", "\x07\x08\x08", "\r", "\x0b\x0c", "\x85", "\x00", "\x7f\x80\x9f",
]  # fmt: skip
MARKUP = [
    "[red]not red[/red]", "[@click=app.quit]do not[/]", "[/unopened]", "[[", "\\[", "[link=http://evil.com]x[/link]",
    "[on red]", "[bold", "[@click=\"app.bell\"]", "[$accent]x[/]", "[x](action:app.quit)", "[y](javascript:alert(1))",
    "![i](file:///etc/passwd)", "<b onclick=x>", "<script>alert(1)</script>", "&#27;[31m", "&lt;", "&NewLine;&Tab;",
    "{{ x }}", "${x}", "%s %d", "$warning", "https://user:pw@evil.com", "www.evil.com", "a@b.c",
]  # fmt: skip
CHARACTERS = [
    "\u202egpj.exe", "\u2066x\u2069", "\u200f\u200e", "\u061c", "a\u200bb\u200cc\u200dd\ufeff", "\u00ad" * 9,
    "e" + "\u0301" * 60, "Z" + "\u0335\u0317\u0321" * 40, "\u0e01" + "\u0e49" * 30, "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u2764\ufe0f1\ufe0f\u20e3", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea\U0001f1f3", "\uff37\uff49\uff44\uff45 \u7761\u89c9",
    "\u3164\uffa0\u115f", "\ufdfd", "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd", "\U000e0041\U000e0042",
    "a\u2028b\u2029c", "\ud83d half", "\ufff9x\ufffay\ufffb", "\ue0b0\uf8ff", "\U0010ffff", "\u0915\u094d\u0937\u093f", "\t\t|\t",
    "\u2060\u2061\u2062", "\u034f" * 5, "\u1100\u1161\u11a8", "\u2800", "\u3000",
]  # fmt: skip
SHAPES = [
    "{}", "# {}", "- {}\n  - {}", "> {}", "| {} | b |\n|---|---|\n| {} | {} |", "```{}\n{}\n```", "`{}` **{}** *{}*",
    "[{}](http://example.com/{})", "1. {}\n\n   {}", "<think>{}</think>{}",
]  # fmt: skip
LONG = [
    "x" * 100_000, "\u7761" * 100_000, "a b " * 25_000, "\U0001f98a" * 20_000, "e\u0301" * 50_000, "[" * 20_000, "*a " * 10_000,
    "> " * 5_000 + "deep", "- " * 5_000 + "deep", "".join(" " * n + "- x\n" for n in range(0, 400, 2)), "`" * 30_000,
    "|" * 5_000 + "\n" + "|-" * 5_000 + "\n", "| a |\n|---|\n" + "| b |\n" * 500, "\n" * 20_000 + "end", "\t" * 5_000,
    "```\n" + "y" * 100_000, "```" + "x" * 5_000, "http://a.b/" * 3_000, "\u202e" * 50_000 + "end", "![](" * 5_000, "&amp;" * 20_000,
    "[a]: http://x\n" * 500, "\x1b[31m" * 20_000,
]  # fmt: skip
TEXTS = [
    *(
        shape.replace("{}", text)
        for (row, text), (column, shape) in itertools.product(
            enumerate([*ESCAPES, *MARKUP, *CHARACTERS]), enumerate(SHAPES)
        )
        if (row + column) % 2 == 0
    ),
    *LONG,
]
"""Each short text in half of ``SHAPES``, and the very long ones."""
