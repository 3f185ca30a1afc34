"""Selecting messages by a click, the footer's actions, editing replies, copying tables and plain text."""

from __future__ import annotations

from tests.ui.conftest import OpenApp, RunningApp
from tests.ui.tour import settle
from tqchat.ui.screens.dialog import Choose
from tqchat.ui.widgets.chat.body import Body
from tqchat.ui.widgets.chat.log import ChatLog
from tqchat.ui.widgets.prompt.prompt import Prompt

TABLES = "| a | b |\n|---|---|\n| 1 | 2 |\n\nand\n\n- | c |\n  |---|\n  | **3** |\n"


def footer(ui: RunningApp) -> str:
    return ui.text().splitlines()[-1]


async def click(ui: RunningApp, text: str, times: int = 1) -> None:
    """Click on a text in the conversation."""
    await settle(ui, text)
    lines = ui.text().splitlines()
    ((x, y),) = [(line.index(text), y) for y, line in enumerate(lines) if text in line and y > 1]
    widget, region = ui.app.get_widget_at(x, y)
    await ui.pilot.click(widget, offset=(x - region.x, y - region.y), times=times)
    await ui.pilot.pause()


async def test_a_click_selects_a_message_and_shows_what_suits_it(open_app: OpenApp) -> None:
    async with open_app((140, 40)) as ui:
        log, prompt = ui.app.query_one(ChatLog), ui.app.query_one(Prompt)
        await ui.turn("About the foxes", f"Red ones.\n\n{TABLES}")
        await click(ui, "Red ones.")
        await ui.until(lambda: "t table" in footer(ui))
        assert log.marked and log.marked.role == "assistant" and log.has_focus
        assert "b branch" in footer(ui)
        assert not any(word in footer(ui) for word in ("code", "unfold", "continue", "version", "open"))
        await ui.pilot.press("t")
        await ui.until(lambda: isinstance(ui.app.screen, Choose))
        await ui.pilot.press("up", "enter")
        await ui.shows("Copied table 1, 7 characters in 2 lines.")
        assert ui.app.clipboard == "a\tb\n1\t2" and log.marked, "a dialog does not take the mark away"
        await ui.pilot.press("p")
        assert (
            ui.app.clipboard
            == "Red ones.\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\nand\n\n- | c |\n  | --- |\n  | 3 |"
        )
        await ui.pilot.press("escape")
        await ui.until(lambda: log.marked is None and prompt.has_focus)
        await ui.send("/copy table")
        await ui.until(lambda: isinstance(ui.app.screen, Choose))
        await ui.pilot.press("enter")
        await ui.until(lambda: ui.app.clipboard == "c\n3")
        await click(ui, "you")
        await ui.until(lambda: log.marked and log.marked.role == "user")
        assert "e edit" in footer(ui) and "branch" not in footer(ui) and "table" not in footer(ui)
        await ui.pilot.click(Prompt)
        await ui.until(lambda: log.marked is None and "F1 help" in footer(ui))


async def test_two_clicks_select_a_word_with_its_marks(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("Tell me", "One नमस्ते two.")
        await click(ui, "नमस्ते", times=2)
        assert ui.app.screen.get_selected_text() == "नमस्ते"


async def test_selected_words_are_copied_and_esc_does_not_stop_the_reply(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("Tell me", "One sly fox.")
        await ui.send("And then?")
        await ui.until(lambda: len(ui.engine.sent()) == 2)
        ui.engine.delta("Once")
        await click(ui, "sly fox", times=2)
        await ui.until(lambda: "^C copy" in footer(ui))
        assert ui.app.screen.get_selected_text() == "sly"
        await ui.pilot.press("ctrl+c")
        await ui.shows("Copied 3 characters.")
        assert ui.app.clipboard == "sly"
        await ui.pilot.press("escape")
        await ui.until(lambda: not ui.app.screen.selections)
        assert ui.engine.stops == 0
        for body in ui.app.query(Body):
            body.text_select_all()
        ui.app.screen.text_select_all()
        assert ui.app.screen.get_selected_text() == "Tell me\n\nOne sly fox.\n\nAnd then?\n\nOnce"


async def test_a_reply_is_edited_as_another_version_and_not_answered(open_app: OpenApp) -> None:
    async with open_app() as ui:
        prompt = ui.app.query_one(Prompt)
        await ui.send("Why?")
        await ui.until(lambda: ui.engine.sent())
        ui.engine.done("/Because.", reasoning="Let me see.")
        await ui.shows("/Because.")
        await ui.pilot.press("x", "ctrl+up", "e")
        await ui.until(lambda: prompt.text == "/Because.")
        await ui.shows("Edits a reply")
        await ui.pilot.press("escape")
        await ui.until(lambda: prompt.text == "x")
        await ui.pilot.press("ctrl+up", "e")
        await ui.until(lambda: prompt.text == "/Because.")
        prompt.put("/So @that.")
        await ui.pilot.press("enter")
        await ui.shows("Saved as another version")
        await ui.shows("2/2")
        assert prompt.text == "x" and len(ui.engine.sent()) == 1
        edited = ui.app.chat.shown.messages[-1]
        assert (edited.content, edited.reasoning, edited.status) == ("/So @that.", "Let me see.", "complete")
        await ui.pilot.press("alt+left")
        await ui.shows("/Because.")
        await ui.pilot.press("alt+right")
        await ui.turn("Really?", "Yes.")
        assert [one.content for one in ui.engine.sent()[-1].messages] == ["Why?", "/So @that.", "Really?"]


async def test_a_click_on_folded_reasoning_unfolds_it(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.send("Why?")
        await ui.until(lambda: ui.engine.sent())
        ui.engine.done("Because.", reasoning="Let me see.")
        await click(ui, "▸ Thought for")
        await ui.shows("Let me see.")
        await click(ui, "▾ Thought for")
        await ui.hides("Let me see.")


async def test_reasoning_is_open_until_the_answer_begins_if_wanted(open_app: OpenApp) -> None:
    async with open_app((120, 60)) as ui:
        ui.app.parts.preferences.set("show_thinking", "streaming")
        steps = "\n".join(f"Step {number}." for number in range(1, 31))
        await ui.send("Why?")
        await ui.until(lambda: ui.engine.sent())
        ui.engine.delta(steps, "reasoning")
        await ui.shows("Step 1.")
        await ui.shows("Step 30.")
        ui.engine.delta("Because.")
        await ui.hides("Step 30.")
        ui.engine.done("Because.", reasoning=steps)
        await ui.shows("▸ Thought for 2.0 s")
        assert "Step 30." not in ui.text()
