"""Markdown does not change what was written: every word is visible, streamed or at once."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from textual.content import Content

from tests.ui.widgets.test_markdown import drawn, streamed
from tqchat.text import stable_width
from tqchat.ui.widgets.chat.blocks import blocks
from tqchat.ui.widgets.chat.layout import lines
from tqchat.ui.widgets.chat.stream import MAX_OPEN_LINES

EXAMPLES = [
    stable_width(example["markdown"])
    for example in json.loads((Path(__file__).parent / "commonmark" / "examples.json").read_text("utf-8"))
]
PIECES = [
    "text ", "*", "**", "`", "```", "\n", "\n", "\n\n", "\n   ", "- ", "1. ", "2. ", "0. ", "3) ", "> ", "# ",
    "| a | b |\n|---|---|\n| c | d |", "|", "$", "$$", "$$\n", "\\(", "\\)", "\\[", "\\[\n", "\\]",
    "\\begin{align}", "\\end{align}", "a_1", "[x](http://e.com/ü)", "[1]: http://e.com", "---", "===", "~~~",
    "    ", "\t", "「重点」", "。", "https://e.com/路径。", "&amp; ", "<b>", "- [ ] ", "\\", "2",
]  # fmt: skip


def random_document(seed: int) -> str:
    chance = random.Random(seed)
    return "".join(chance.choice(PIECES) for _ in range(chance.randint(2, 40)))


DOCUMENTS = [random_document(seed) for seed in range(100)]


def missing(text: str) -> set[str]:
    """Words of a source that are not drawn. Character references are replaced, except in code."""
    shown = "\n".join(drawn(blocks(text), 300))
    words = re.findall(r"[^\W_]+", re.sub(r"&#?\w+;", " ", text))
    return {word for word in words if word not in shown}


def kept(text: str) -> str:
    """What is drawn of a text on one line."""
    return " ".join(drawn(blocks(text), 300))


def styled(text: str) -> list[str]:
    """The parts of a paragraph that have a style."""
    (line,) = lines(blocks(text), 300)
    return [f"{line.plain[span.start : span.end]}: {span.style}" for span in line.spans if span.style]


@pytest.mark.parametrize("texts", [EXAMPLES, DOCUMENTS], ids=["CommonMark", "random"])
def test_every_word_of_the_source_is_visible(texts: list[str]) -> None:
    assert {text: lost for text in texts if (lost := missing(text))} == {}


@pytest.mark.parametrize(
    "deep",
    [
        "".join(f"{'  ' * level}- level{level}\n" for level in range(60)),
        f"{'> ' * 60}quoted\n",
        f"{'- ' * 60}item\n",
    ],
    ids=["lists", "quotes", "marks"],
)
def test_deep_nesting_costs_no_word_of_it_or_behind_it(deep: str) -> None:
    text = f"{deep}\n\n# Behind\n\n- done\n"
    assert missing(text) == set()
    assert "\n".join(drawn(blocks(text))) == "\n".join(drawn(streamed(text, 7)))


@pytest.mark.parametrize("texts", [EXAMPLES, DOCUMENTS], ids=["CommonMark", "random"])
def test_streamed_text_has_the_lines_of_the_complete_text(texts: list[str]) -> None:
    for text in texts:
        assert drawn(streamed(text, 12)) == drawn(blocks(text)), text


@pytest.mark.parametrize(
    "formula",
    [
        r"\(a^2 + b_1 \, c\)",
        r"\[ x_1 * y_2 * z \]",
        r"$\{x_1, x_2\}$",
        r"$a*b*c$",
        r"$$\underbrace{a}_{P_1} + \underbrace{b}_{P_2}$$",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
    ],
)
def test_a_formula_in_a_sentence_is_kept(formula: str) -> None:
    for text in (
        f"With {formula} it holds.",
        f"**{formula}**",
        f"- {formula}",
        f"| {formula} |\n|---|\n| b |",
    ):
        assert formula in kept(text)
    assert formula in kept(f"{formula}, as said")


@pytest.mark.parametrize(
    "formula",
    [
        "$$\nx = 1\n---\n- y * z * w\n$$",
        "\\[\n\\int_0^1 x^2\\,dx = \\frac{1}{3}\n\\]",
        "\\begin{align*}\na &= b \\\\\n\n# c &= d_1 * e_2 *\n\\end{align*}",
        "$$ f(x) = \\begin{pmatrix} 1 & 2 \\\\\n3 & 4 \\end{pmatrix} $$",
    ],
)
def test_a_formula_of_several_lines_is_kept_with_its_lines(formula: str) -> None:
    for text in (formula, f"So:\n{formula}\ndone", f"> {formula}".replace("\n", "\n> ")):
        shown = [line.removeprefix("▌ ").removeprefix("▌") for line in drawn(blocks(text))]
        assert "\n".join(shown).replace("So:\n\n", "").replace("\n\ndone", "") == formula


def test_prices_and_escapes_are_no_formulas() -> None:
    assert kept("It costs $5 and then $6, not *more*.") == "It costs $5 and then $6, not more."
    assert kept("\\[not a link](/foo) and *this*\n\nend") == "[not a link](/foo) and this  end"
    assert kept("`$a*b` and *c*$ and \\\\(d*e*)") == "$a*b and c$ and \\(de)"


@pytest.mark.parametrize(
    ("text", "strong"),
    [
        ("含**「重点」**内容", "「重点」"),
        ("**重要提示：**请注意", "重要提示："),
        ("これは**「強調」**です。", "「強調」"),
        ("**注意（必読）**を読む", "注意（必読）"),
        ("他说**“你好”**然后", "“你好”"),
        ("**(필독)**을 읽다", "(필독)"),
        ("a **b** c", "b"),
    ],
)
def test_emphasis_beside_cjk_punctuation(text: str, strong: str) -> None:
    assert styled(text) == [f"{strong}: bold"]


def test_strikethrough_and_italics_beside_cjk_punctuation() -> None:
    assert styled("这是~~「旧」~~的") == ["「旧」: strike"]
    assert styled("这是*「新」*的") == ["「新」: italic"]
    assert styled('a*"b"*c') == [], "CommonMark's rule for other text"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("3. a\n4. b", ["3. a", "4. b"]),
        ("0. a\n1. b", ["0. a", "1. b"]),
        ("999999999. a", ["999999999. a"]),
        ("1) a\n2) b", ["1) a", "2) b"]),
        ("1. a\n1. b\n1. c", ["1. a", "2. b", "3. c"]),
        ("0. a\n0. b", ["0. a", "1. b"]),
        ("10. a\n20. b", ["10. a", "20. b"]),
        ("3. a\n2. b\n1. c", ["3. a", "2. b", "1. c"]),
        ("1. [ ] a\n2. [x] b", ["1. ☐ a", "2. ☑ b"]),
        ("- a\n- b\n\n- c", ["• a", "• b", "", "• c"]),
        ("- a\n\n  more\n- b", ["• a", "", "  more", "• b"]),
        ("> 1. a\n>\n> 2. b", ["▌ 1. a", "▌", "▌ 2. b"]),
    ],
)
def test_lists_keep_their_numbers_and_empty_lines(text: str, shown: list[str]) -> None:
    assert drawn(blocks(text)) == drawn(streamed(text, 1)) == shown


@pytest.mark.parametrize("number", ["1. ", "{}. ", "- "])
def test_a_long_list_keeps_its_numbers_and_empty_lines_while_it_streams(number: str) -> None:
    items = [f"{number.format(n)}item {n}\n" + "\n" * (n % 3 == 0) for n in range(3, 3 * MAX_OPEN_LINES)]
    whole, pieces = drawn(blocks("".join(items))), drawn(streamed("".join(items), 30))
    assert [line.split() for line in pieces] == [line.split() for line in whole]


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("见https://example.com/路径。谢谢", "https://example.com/路径"),
        ("siehe https://de.example.org/wiki/Zürich.", "https://de.example.org/wiki/Zürich"),
        ("（https://example.com/東京）", "https://example.com/東京"),
        ("https://example.com/%E8%B7%AF end", "https://example.com/%E8%B7%AF"),
        ("https://en.wikipedia.org/wiki/Foo_(bar)", "https://en.wikipedia.org/wiki/Foo_(bar)"),
    ],
)
def test_an_address_ends_where_it_ends_and_is_not_encoded(text: str, linked: str) -> None:
    assert kept(text) == text
    assert styled(text) == [f"{linked}: underline"]


def test_targets_titles_and_definitions_of_links_are_shown() -> None:
    assert kept('[a](http://e.com/ü "Title")') == 'a (http://e.com/ü "Title")'
    assert kept('![b](c.png "Title")') == '[image: b] (c.png "Title")'
    text = 'See [one][1] and a note[^n].\n\n[1]: http://e.com "Title"\n[^n]: The note.'
    assert drawn(blocks(text)) == text.split("\n")


def test_tables_keep_cells_beyond_the_header_and_pipes_in_code() -> None:
    head = "| a | b |\n|---|---|\n"
    assert drawn(blocks(head + "| 1 | 2 | 3 |"))[2].split() == ["1", "2", "3"]
    assert drawn(blocks(head + "| `x|y` | $|z|$ |"))[2].split() == ["x|y", "$|z|$"]
    assert drawn(blocks(head + "| x \\| y | 2 |"))[2].split() == ["x", "|", "y", "2"]


def test_the_info_of_a_code_block_is_shown() -> None:
    (label,) = drawn(blocks("```js title=main.js {1,3}\nlet a;\n```"))
    assert label.split() == ["let", "a;", "js", "title=main.js", "{1,3}"]


def test_a_long_line_of_code_is_wrapped_with_a_mark() -> None:
    code = "curl --silent --output file.txt https://example.org/a/rather/long/path/to/睡觉/file.txt"
    for width in (20, 33, 40):
        first, *others = drawn(blocks(f"```\n{code}\n```"), width)
        assert others and all(line.startswith(" ↳ ") for line in others)
        assert first[1:] + "".join(line[3:] for line in others) == code
    assert isinstance(lines(blocks("```\nx\n```"), 20)[0], Content)
