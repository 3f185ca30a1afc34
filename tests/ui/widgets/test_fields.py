"""Input fields: nothing enters them that is not shown."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.widgets.text_area import Selection

import tqchat.ui
from tests import hostile
from tests.test_text import is_safe
from tqchat.ui.widgets.fields import LineField, TextField
from tqchat.ui.widgets.prompt.prompt import LONG_TEXT_CHARACTERS, Prompt

HOSTILE = "one " + hostile.NAME + "\r\ntwo\rthree\x0bfour\x85"
PASTED = "".join(chr(code) for code in range(0x80, 0xA0)) + HOSTILE


class Fields(App[None]):
    def compose(self) -> ComposeResult:
        yield LineField(HOSTILE)
        yield TextField(HOSTILE)
        yield Prompt()


async def test_nothing_unsafe_enters_a_line() -> None:
    async with Fields().run_test() as pilot:
        field = pilot.app.query_one(LineField)
        ways = (
            lambda: None,
            lambda: setattr(field, "value", HOSTILE),
            lambda: field.insert_text_at_cursor(PASTED),
            lambda: field.replace(PASTED, 0, 2),
        )
        for enter in ways:
            enter()
            assert is_safe(field.value) and "one" in field.value and "\n" not in field.value
        field.value = ""
        field.focus()
        pilot.app.post_message(events.Paste(HOSTILE))
        await pilot.pause()
        assert is_safe(field.value) and "one" in field.value


async def test_nothing_unsafe_enters_a_text_and_line_breaks_stay() -> None:
    async with Fields().run_test() as pilot:
        field = pilot.app.query_one(TextField)
        assert is_safe(field.text) and field.document.line_count == 3
        field.text = HOSTILE
        assert is_safe(field.text) and field.document.line_count == 3
        field.load_text("")
        field.insert(PASTED)
        assert is_safe(field.text) and field.document.line_count == 3
        field.selection = Selection((0, 0), (2, 1))
        field.focus()
        pilot.app.post_message(events.Paste(PASTED))
        await pilot.pause()
        assert is_safe(field.text) and field.document.line_count == 3
        field.undo()
        field.redo()
        assert is_safe(field.text)


async def test_nothing_unsafe_enters_the_prompt_even_folded() -> None:
    async with Fields().run_test() as pilot:
        prompt = pilot.app.query_one(Prompt)
        prompt.remember([HOSTILE, HOSTILE * 400])
        prompt.focus()
        for text in (HOSTILE, HOSTILE * (LONG_TEXT_CHARACTERS // len(HOSTILE) + 1)):
            prompt.put(text)
            assert is_safe(prompt.full_text) and "three" in prompt.full_text
            prompt.prepend(text)
            assert is_safe(prompt.full_text)
            prompt.clear()
            pilot.app.post_message(events.Paste(text))
            await pilot.pause()
            assert is_safe(prompt.full_text) and "three" in prompt.full_text
            prompt.complete(0, text)
            assert is_safe(prompt.full_text)
            prompt.clear()
            await pilot.press("up")
            assert is_safe(prompt.full_text) and prompt.full_text
            prompt.clear()


@pytest.mark.parametrize(
    "file", sorted(Path(tqchat.ui.__file__).parent.rglob("*.py")), ids=lambda file: file.stem
)
def test_only_these_fields_are_used(file: Path) -> None:
    if file.name == "fields.py":
        return
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("textual"):
            assert not {"Input", "MaskedInput", "TextArea"} & {alias.name for alias in node.names}


CHARACTERS = [
    "a",
    "e\u0301",
    "👨\u200d👩\u200d👧",
    "🇩🇪",
    "🇫🇷",
    "❤\ufe0f",
    "👍🏽",
    "स्",
    "漢",
    "\u1100\u1161\u11a8",
]
"""What is one character on the screen, of one code point or several."""


@pytest.mark.parametrize("kind", [LineField, TextField, Prompt])
async def test_keys_move_over_and_delete_whole_characters(kind: type[LineField] | type[TextField]) -> None:
    async with Fields().run_test() as pilot:
        field = pilot.app.query(kind).last()
        field.focus()

        def text() -> str:
            return field.value if isinstance(field, LineField) else field.text

        def put(text: str) -> None:
            if isinstance(field, LineField):
                field.value = text
            else:
                field.text = text

        for key in ("backspace", "left", "shift+left"):
            put("".join(CHARACTERS))
            await pilot.press("end")
            for count in range(len(CHARACTERS), 0, -1):
                await pilot.press(*([key] if key == "backspace" else [key, "x", "left"]))
                before = "".join(CHARACTERS[: count - 1])
                assert text().startswith(before + ("" if key == "backspace" else "x"))
        for key in ("delete", "right"):
            put("".join(CHARACTERS))
            await pilot.press("home")
            for count in range(1, len(CHARACTERS) + 1):
                await pilot.press(*([key] if key == "delete" else [key, "x", "left", "delete"]))
                assert text().endswith("".join(CHARACTERS[count:]))
        assert text() == "".join(CHARACTERS)


@pytest.mark.parametrize("place", range(1, 5))
async def test_the_cursor_is_never_put_inside_a_character(place: int) -> None:
    async with Fields().run_test() as pilot:
        line, field = pilot.app.query_one(LineField), pilot.app.query_one(TextField)
        line.value = field.text = "👨\u200d👩\u200d👧 and"
        line.cursor_position = place
        field.move_cursor((0, place))
        for one in (line, field):
            one.focus()
            await pilot.press("left", "x")
        assert line.value == field.text == "x👨\u200d👩\u200d👧 and"


WORDS = ["नमस्ते", "cafe\u0301s", "เก้าอี้", "سَلَام", "می\u200cخواهم", "and", "x_1"]


@pytest.mark.parametrize("kind", [LineField, TextField])
async def test_a_word_with_marks_is_one_word(kind: type[LineField] | type[TextField]) -> None:
    async with Fields().run_test() as pilot:
        field = pilot.app.query(kind).first()
        field.focus()

        async def edited(text: str, *keys: str) -> str:
            if isinstance(field, LineField):
                field.value = text
            else:
                field.text = text
            await pilot.press(*keys)
            return field.value if isinstance(field, LineField) else field.text

        for word in WORDS:
            assert await edited(f"one {word}", "end", "ctrl+w") == "one "
            moved = await edited(f"{word} two", "home", "ctrl+right", "+")
            assert moved in (f"{word}+ two", f"{word} +two")


@pytest.mark.parametrize("kind", [LineField, TextField])
async def test_the_cursor_tears_no_character_apart(kind: type[LineField] | type[TextField]) -> None:
    async with Fields().run_test() as pilot:
        field = pilot.app.query(kind).first()
        field.focus()
        strips = []
        for text in ("AB and", "👨\u200d👩\u200d👧 and"):
            if isinstance(field, LineField):
                field.value = text
            else:
                field.text = text
            await pilot.press("home")
            strips.append(field.render_line(0))
        assert "👨\u200d👩\u200d👧" in [segment.text for segment in strips[1]]
        assert strips[0].cell_length == strips[1].cell_length
