"""State of a conversation leaves the screen with it: after every action the screen is that of a new start."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from tests.ui.conftest import OpenApp, RunningApp
from tqchat.ui.widgets.conversations.list import ConversationList
from tqchat.ui.widgets.fields import LineField
from tqchat.ui.widgets.prompt.prompt import Prompt

SIZE = re.compile(r" +[\d.]+ [kM]?B$| +$")
Step = Callable[[RunningApp], Awaitable[object]]


def press(*keys: str, text: str = "", search: str = "") -> Step:
    """Write a text, or search for one, then press keys."""

    async def step(ui: RunningApp) -> None:
        if text:
            ui.app.query_one(Prompt).insert(text)
        if search:
            ui.app.parts.conversations.search_for(search)
        await ui.pilot.press(*keys)

    return step


def send(text: str) -> Step:
    async def step(ui: RunningApp) -> None:
        ui.app.query_one(Prompt).insert(text)
        before = len(ui.engine.sent())
        await ui.pilot.press("enter")
        await ui.until(lambda: len(ui.engine.sent()) > before)
        ui.engine.reply(f"Reply to {text}.")
        await ui.until(lambda: ui.app.chat.work.reply is None)

    return step


async def rename(ui: RunningApp) -> None:
    ui.app.query_one(Prompt).put("/rename Of bees")
    await ui.pilot.press("enter")


async def delete(ui: RunningApp) -> None:
    await ui.pilot.press("f8")
    await ui.pilot.pause()
    await ui.pilot.press("y")


WALK: list[tuple[str, Step]] = [
    ("the edited message is sent", press("ctrl+up", "k", "e")),
    ("sent", send("!")),
    ("an edit is left for another version", press("ctrl+up", "k", "e", "alt+left", text="draft")),
    ("an edit is left for another conversation", press("ctrl+up", "k", "e", "alt+down")),
    ("a branch is left for a new conversation", press("ctrl+up", "b", "ctrl+n")),
    ("a draft of a new conversation", press("alt+down", text="new draft")),
    ("renamed", rename),
    ("a filter hides it", press("tab", search="owl")),
    ("a new conversation", press("ctrl+n")),
    ("its first message", send(" of newts")),
    ("deleted", delete),
    ("restored", press("alt+z")),
    ("a filter is left for the conversation below", press("alt+down", search="owl")),
    ("the newest conversation", press("ctrl+n", "alt+down")),
]


def shown(ui: RunningApp) -> dict[str, object]:
    """What the screen shows of the conversation, without what only a cache in memory has."""
    prompt, listed = ui.app.query_one(Prompt), ui.app.query_one(ConversationList)
    return {
        "top": ui.said("#top"),
        "prompt": prompt.text,
        "label": str(prompt.border_title or ""),
        "filter": listed.query_one("#search", LineField).value,
        "list": [SIZE.sub("", row) for row in ui.listed()],
        "messages": [message.content for message in ui.app.chat.shown.messages],
        "faded": len(ui.app.query(".faded")),
    }


async def test_the_screen_shows_the_state_and_nothing_else(open_app: OpenApp) -> None:
    async with open_app((120, 24)) as ui:
        for text in ("owls", "bees"):
            await ui.pilot.press("ctrl+n")
            await send(text)(ui)
        for name, step in WALK:
            await step(ui)
            await ui.pilot.pause()
            ui.app.parts.screen.draw_due()
            await ui.pilot.pause()
            state = ui.app.chat.shown
            fork = state.fork
            drawn = shown(ui)
            title = state.conversation.title if state.conversation else "New conversation"
            assert f"  {title} " in str(drawn["top"]), name
            edited = fork is not None and fork.edited_id is not None
            label = "Edits an earlier message" if edited else "Starts a branch here" if fork else ""
            assert drawn["label"] == label, name
            assert bool(drawn["faded"]) <= bool(fork) and bool(drawn["faded"]) >= edited, name
            if drawn["filter"]:
                continue
            if state.conversation:
                assert any(title[:8] in row and "▌" in row for row in drawn["list"]), name
            if not edited:
                await ui.app.workers.wait_for_complete()
                ui.app.parts.unsent.keep()
                assert drawn["prompt"] == state.unsent_text, name
        ui.app.parts.remember_conversation()
        last = shown(ui)
    async with open_app((120, 24)) as ui:
        await ui.until(lambda: shown(ui) == last)


async def test_a_draft_that_an_edit_set_aside_comes_back(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await send("foxes")(ui)
        prompt = ui.app.query_one(Prompt)
        prompt.insert("draft")
        for keys in (["escape"], ["ctrl+n", "alt+down"], ["enter"], ["alt+left"]):
            await ui.pilot.press("ctrl+up", "k", "e")
            await ui.until(lambda: prompt.text == "foxes")
            await ui.pilot.press(*keys)
            await ui.until(lambda: prompt.text == "draft")
            if keys == ["enter"]:
                ui.engine.reply("Again.")
                await ui.until(lambda: ui.app.chat.work.reply is None)
