"""Actions by key: message cursor, editing, copying, search, deletion."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList

from tests.ui.conftest import Open, Stage
from tqchat.ui.widgets.chat.log import ChatLog
from tqchat.ui.widgets.conversations.list import PAGE
from tqchat.ui.widgets.prompt.prompt import Prompt


def reversed_words(it: Stage) -> list[str]:
    """Text in reverse video in the log: the words of a search."""
    strips = it.app.screen._compositor.render_strips()
    log = it.app.query_one(ChatLog).region
    segments = [segment for strip in strips for segment in strip.crop(log.x, log.right - 1)]
    return [one.text for one in segments if one.style and one.style.reverse and one.style.bold]


CODE = "Here:\n\n```python\nprint('fox')\n```\n"


async def test_the_cursor_selects_a_message_to_edit(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Red ones.")
        await it.pilot.press("x", "ctrl+up")
        log, prompt = it.app.query_one(ChatLog), it.app.query_one(Prompt)
        await it.until(lambda: log.marked and log.marked.content == "Red ones.")
        await it.sees("e edit")
        await it.pilot.press("k", "e")
        await it.until(lambda: prompt.text == "About foxes" and it.app.focused is prompt)
        await it.sees("Edits an earlier message")
        await it.pilot.press("escape")
        await it.until(lambda: prompt.text == "x")
        await it.sees_no("Edits an earlier message")
        await it.pilot.press("ctrl+up", "ctrl+up", "e")
        await it.until(lambda: prompt.text == "About foxes")
        prompt.put("About owls")
        await it.pilot.press("enter")
        await it.until(lambda: len(it.engine.sent()) == 2)
        it.engine.reply("Grey ones.")
        await it.sees("2/2")
        await it.sees_no("Red ones.")
        await it.pilot.press("alt+left")
        await it.sees("Red ones.")
        await it.sees("1/2")


async def test_a_cut_off_reply_is_continued_by_key(stage: Open) -> None:
    async with stage() as it:
        await it.ask("Count")
        await it.until(lambda: it.engine.sent())
        it.engine.done("one, two", "length")
        await it.sees("F4 continues")
        await it.pilot.press("f4")
        await it.until(lambda: len(it.engine.sent()) == 2)
        it.engine.delta(", three")
        it.engine.done(", three")
        await it.sees("one, two, three")
        await it.sees_no("F4 continues")


async def test_copies_go_to_the_clipboard(stage: Open) -> None:
    async with stage() as it:
        await it.chat("Show", CODE)
        await it.pilot.press("f5")
        assert it.app.clipboard == CODE
        await it.pilot.press("alt+c")
        assert it.app.clipboard == "print('fox')"
        await it.pilot.press("alt+a")
        assert it.app.clipboard.startswith("**you**\n\nShow\n\n**starter 30M**\n\nHere:")
        await it.pilot.press("ctrl+up", "ctrl+up", "y")
        assert it.app.clipboard == "Show"
        await it.sees("Copied the message, 4 characters.")


async def test_search_finds_words_in_messages_and_opens_the_message(stage: Open) -> None:
    async with stage() as it:
        database = it.app.database
        long = database.create("Animals", None, "turbo0v4")
        for number in range(60):
            text = "The quokka smiles." if number == 4 else f"Message {number}"
            database.add_message(long.id, "user" if number % 2 == 0 else "assistant", text)
        await it.pilot.press("ctrl+f")
        await it.until(lambda: isinstance(it.app.focused, Input))
        await it.pilot.press(*"quokka")
        await it.sees("1 found")
        await it.sees("quokka smiles.")
        await it.pilot.press("enter")
        log = it.app.query_one(ChatLog)
        await it.until(lambda: log.marked and log.marked.content == "The quokka smiles.")
        await it.sees("Message 5")
        await it.until(lambda: "quokka" in reversed_words(it))
        await it.pilot.press("escape")
        await it.until(lambda: not reversed_words(it))


async def test_unsent_text_returns_with_its_conversation(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Red ones.")
        prompt = it.app.query_one(Prompt)
        await it.pilot.press(*"half")
        await it.pilot.press("ctrl+n")
        assert prompt.text == ""
        await it.pilot.press("alt+down")
        await it.until(lambda: prompt.text == "half")


async def test_a_deleted_conversation_is_restored(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Red ones.")
        await it.pilot.press("f8", "y")
        await it.sees("Alt+Z brings it back.")
        await it.pilot.press("alt+z")
        await it.sees("Red ones.")


async def test_one_of_several_code_blocks_is_chosen(stage: Open) -> None:
    async with stage() as it:
        await it.chat("Show", "```python\nprint(1)\n```\n\nor\n\n```sh\nls\n```\n")
        await it.pilot.press("ctrl+up", "o")
        await it.sees("Copy which block?")
        await it.sees("1 python")
        it.app.screen.query_one(OptionList).highlighted = 0
        await it.pilot.press("enter")
        await it.until(lambda: it.app.clipboard == "print(1)")
        await it.sees("Copied block 1")


async def test_copied_text_reaches_the_desktop_clipboard(
    stage: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "xclip"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat > {tmp_path}/copied.part\n'
                       f"mv {tmp_path}/copied.part {tmp_path}/copied\n")  # fmt: skip
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("DISPLAY", ":7")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    async with stage() as it:
        await it.chat("Show", "A 🦊 reply.")
        await it.pilot.press("f5")
        await it.until((tmp_path / "copied").exists)
        assert (tmp_path / "copied").read_text() == "A 🦊 reply."
        assert (tmp_path / "asked").read_text() == "-selection clipboard\n"


async def test_one_message_is_deleted_and_restored(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Red ones.")
        await it.chat("About owls", "Grey ones.")
        await it.pilot.press("ctrl+up", "k", "k", "d")
        await it.sees("Delete this message?")
        await it.pilot.press("escape")
        await it.sees("Red ones.")
        await it.pilot.press("ctrl+up", "ctrl+up", "d")
        await it.sees("Delete this message?")
        await it.pilot.press("y")
        await it.sees("brings it back")
        contents = [message.content for message in it.app.chat.shown.messages]
        assert len(contents) == 3
        await it.pilot.press("alt+z")
        await it.until(lambda: len(it.app.chat.shown.messages) == 4)
        await it.pilot.press("alt+z")
        await it.sees("Nothing was deleted")


async def test_deletions_are_undone_last_first(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Red ones.")
        it.app.chat.deletion.delete_message(it.app.chat.shown.messages[1])
        await it.pilot.press("f8", "y")
        await it.until(lambda: it.app.chat.shown.conversation is None)
        await it.pilot.press("alt+z")
        await it.until(lambda: len(it.app.chat.shown.messages) == 1)
        await it.pilot.press("alt+z")
        await it.sees("Red ones.")


async def test_a_long_list_shows_the_newest_and_loads_more_on_request(stage: Open) -> None:
    async with stage() as it:
        for number in range(PAGE + 30):
            it.app.database.create(f"Number {number}", None, "turbo0v4")
        it.app.chat.view.conversations_changed()
        titles = it.app.query_one("#titles", OptionList)
        await it.until(lambda: titles.option_count == PAGE + 2)
        await it.pilot.press("f2", "f2")
        await it.until(lambda: titles.has_focus)
        await it.pilot.press("end", "enter")
        await it.until(lambda: titles.option_count == PAGE + 31)
        await it.pilot.press("end", "enter")
        await it.until(
            lambda: it.app.chat.shown.conversation and it.app.chat.shown.conversation.title == "Number 0"
        )
