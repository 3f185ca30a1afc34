"""Markdown layout: streamed text equals complete text, and lines fit the width."""

from __future__ import annotations

import random

import pytest
from textual.content import Content

from tests.ui.adversarial import TEXTS
from tqchat.ui.widgets.chat.blocks import Block, Table, blocks
from tqchat.ui.widgets.chat.layout import lines
from tqchat.ui.widgets.chat.stream import MAX_OPEN_LINES, Stream

DOCUMENTS = {
    "everything": """# Title

Intro *text* and **more**, `code`, [a link](http://example.com/a) and http://example.com.

```python
def f(x):
    return x
```

- a
- b
  - c

    paragraph
- [x] d
- [ ] e

3. three
4. four

> quoted
lazily

| left | right |
|:-----|------:|
| 1    | 2     |

Underlined
==========

---

    indented code

    more of it
end""",
    "a long fence": "```py\n" + "".join(f"x{n} = {n}\n" for n in range(3 * MAX_OPEN_LINES)) + "```\n\nend",
    "a long list": "".join(f"- item {n}\n" for n in range(3 * MAX_OPEN_LINES)) + "\nend",
    "a long loose list": "".join(f"1. item {n}\n\n   more\n" for n in range(2 * MAX_OPEN_LINES)),
    "many paragraphs": "One *two* three.\n\n" * 50,
    "an open fence": "text\n\n~~~\nno end",
    "a fence in a list": "- a\n\n  ```js\n  let a = 1;\n  ```\n\n- b\n",
    "html": "<div>\nkept\n</div>\n\n<b>bold?</b>",
}


def streamed(text: str, size: int) -> list[Block]:
    """The blocks of a text that is streamed in pieces of up to ``size`` characters."""
    chance, stream = random.Random(size), Stream()
    done: list[Block] = []
    rest: list[Block] = []
    position = 0
    while position < len(text):
        step = chance.randint(1, size)
        more, rest = stream.feed(text[position : position + step])
        done += more
        position += step
    return [*done, *rest]


def drawn(found: list[Block], width: int = 60) -> list[str]:
    return [line.plain.rstrip() for line in lines(found, width)]


def words(found: list[Block], width: int = 70) -> list[str]:
    return "\n".join(line.plain for line in lines(found, width)).split()


@pytest.mark.parametrize("size", [3, 60])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_streamed_text_has_the_words_of_the_complete_text(name: str, size: int) -> None:
    text = DOCUMENTS[name]
    assert words(streamed(text, size)) == words(blocks(text))


@pytest.mark.parametrize("size", [1, 7, 200])
def test_a_streamed_document_without_long_blocks_has_the_same_lines(size: int) -> None:
    text = DOCUMENTS["everything"]
    whole, pieces = lines(blocks(text), 60), lines(streamed(text, size), 60)
    assert [line.plain for line in pieces] == [line.plain for line in whole]
    assert [line.spans for line in pieces] == [line.spans for line in whole]


def test_a_very_long_streamed_line_is_complete() -> None:
    text = "".join(f"word{n} " for n in range(3000)) + "\n\n*next*"
    assert words(streamed(text, 500)) == words(blocks(text))


@pytest.mark.parametrize("width", [12, 40, 100])
def test_no_line_exceeds_the_width(width: int) -> None:
    for text in [*DOCUMENTS.values(), *TEXTS]:
        for line in lines(blocks(text[:20_000]), width):
            assert line.cell_length <= width, (text[:80], line.plain)


def test_a_wrapped_list_item_is_indented() -> None:
    (first, second, *_) = lines(blocks("- " + "word " * 30), 40)
    assert first.plain.startswith("• word") and second.plain.startswith("  word")


def test_a_wide_table_wraps_its_cells() -> None:
    text = "| name | what |\n|---|---|\n| fox | " + "red and quick " * 10 + "|\n| owl | grey |"
    laid = [line.plain for line in lines(blocks(text), 40)]
    assert laid[2].startswith("fox   red") and laid[3].startswith("      ") and laid[3][6:].strip()
    assert any(line.startswith("owl") for line in laid)


def test_a_table_of_many_columns_becomes_a_list_of_its_cells() -> None:
    row = "| " + " | ".join(f"column {n}" for n in range(20)) + " |\n"
    text = row + "|---" * 20 + "|\n" + row.replace("column", "value")
    laid = [line.plain for line in lines(blocks(text), 40)]
    assert "column 3: value 3" in laid


def test_table_cells_are_aligned() -> None:
    (table,) = blocks("| a | b | c |\n|:--|:-:|--:|\n| 1 | 2 | 3 |\n| wide cell | wide cell | wide cell |")
    assert isinstance(table, Table) and table.aligns == "<^>"
    (row,) = [line.plain for line in lines([table], 60) if "1" in line.plain]
    assert row == "1          " + "    2    " + "  " + "        3"


def test_a_tab_in_a_cell_is_a_space() -> None:
    table = "| a\tb | c |\n|---|---|\n| x\ty | z |\n"
    assert [line.rstrip() for line in drawn(blocks(table))] == ["a b  c", "───  ─", "x y  z"]


def test_the_address_of_a_link_is_shown() -> None:
    text = "[https://bank.com](https://evil.com/https://bank.com) https://plain.com"
    (said,) = lines(blocks(text), 200)
    assert said.plain == "https://bank.com (https://evil.com/https://bank.com) https://plain.com"


def test_code_has_its_language_and_colours() -> None:
    (label, *_) = lines(blocks("```python\nreturn 1\n```"), 60)
    assert label.plain.rstrip().endswith("python")
    assert any("code-keyword" in str(span.style) for span in label.spans)
    assert isinstance(label, Content)
