"""Selected text comes out as it was written, from anywhere to anywhere."""

from __future__ import annotations

import pytest
from textual.geometry import Offset

from tqchat.ui.widgets.chat.blocks import Line, blocks
from tqchat.ui.widgets.chat.layout import WRAP_MARK, plain_text, rows
from tqchat.ui.widgets.chat.rows import Row, selected, wrapped

PROSE = "The quick brown fox jumps over the lazy dog and goes on to sleep in the shade of the old oak."
KEPT = {
    "prose": PROSE,
    "paragraphs": f"{PROSE}\n\n{PROSE}",
    "an address": f"See https://example.org/{'long/' * 20}index.html now.",
    "CJK": "敏捷的棕色狐狸跳过了懒狗，" * 8,
    "list": f"- one\n- {PROSE}\n  - nested\n- three",
    "numbers": "9. nine\n10. ten\n\n11. eleven",
    "tasks": "- [ ] open\n- [x] done",
    "quote": f"> {PROSE}\n>\n> - in it",
    "table": "| a | b |\n| --- | :-: |\n| 1 | x \\| y |",
    "wide table": f"| a | b |\n| --- | --- |\n| {PROSE} | {PROSE} |",
    "rule": "above\n\n---\n\nbelow",
    "formula": "$$\nx = 1\n$$",
}
CODE = "if x:\n\tfor name in names:\n        print(name)  # " + "long " * 20 + "\n\nend()"


@pytest.mark.parametrize("width", [20, 48, 120])
@pytest.mark.parametrize("name", KEPT)
def test_all_of_it_is_copied_as_it_was_written(name: str, width: int) -> None:
    assert selected(rows(blocks(KEPT[name]), width), None, None) == KEPT[name]


@pytest.mark.parametrize("width", [20, 48, 120])
def test_code_is_copied_without_margin_label_and_marks(width: int) -> None:
    laid = rows(blocks(f"Like so:\n\n```python\n{CODE}\n```\n\nend"), width)
    assert selected(laid, None, None) == f"Like so:\n\n{CODE}\n\nend"
    assert any(WRAP_MARK in row.content.plain for row in laid) == (width < 120 or len(CODE) > width)
    assert plain_text(blocks(f"```python\n{CODE}\n```")) == CODE


def place(laid: list[Row], text: str, after: bool = False) -> Offset:
    (found,) = [(y, row.content.plain) for y, row in enumerate(laid) if text in row.content.plain]
    return Offset(found[1].index(text) + len(text) * after, found[0])


def test_code_in_a_list_is_copied_without_the_lists_indentation() -> None:
    laid = rows(
        blocks(f"1. Like so:\n\n   ```python\n   {CODE.replace(chr(10), chr(10) + '   ')}\n   ```\n2. end"),
        60,
    )
    begin, end = place(laid, "if x:"), place(laid, "end()", after=True)
    assert selected(laid, begin, end) == CODE
    assert selected(laid, Offset(0, begin.y), end) == CODE
    assert selected(laid, place(laid, "Like"), end).startswith("Like so:\n\nif x:\n\tfor")


def test_parts_of_lines_are_copied() -> None:
    laid = rows(blocks(f"{PROSE}\n\n- one two\n- three\n\n| a | b |\n|---|---|\n| cell | d |"), 40)
    assert selected(laid, place(laid, "quick"), place(laid, "lazy", after=True)) == PROSE[4:39]
    assert selected(laid, place(laid, "two"), place(laid, "thr", after=True)) == "two\n- thr"
    assert selected(laid, place(laid, "cell"), place(laid, "cell", after=True)) == "cell"
    assert selected(laid, place(laid, "three"), None) == "three\n\n| a | b |\n| --- | --- |\n| cell | d |"


def test_headings_and_footers_are_copied_only_by_themselves() -> None:
    (answer,) = blocks("Answer.")
    (heading,) = blocks("name  18:23")
    laid = rows([Line(heading.content, aside=True), answer], 40)  # type: ignore[union-attr]
    assert selected(laid, None, None) == "Answer."
    assert selected(laid, None, None, asides=True) == "name  18:23"


def test_tabs_are_kept_wherever_a_selection_begins() -> None:
    (laid,) = wrapped(blocks("```\na\tb\tc\n```")[0].content, 40)  # type: ignore[union-attr]
    assert laid.content.plain == "a   b   c"
    assert laid.copied(0, None) == "a\tb\tc"
    assert laid.copied(4, 9) == "b\tc" and laid.copied(0, 5) == "a\tb"
