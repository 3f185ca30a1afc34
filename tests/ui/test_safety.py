"""Hundreds of adversarial texts in the real widgets: no control sequences, no broken layout."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator

from tests.ui.adversarial import CHARACTERS, ESCAPES, LONG, MARKUP, TEXTS
from tests.ui.conftest import OpenApp, RunningApp, drawn
from tqchat.engine.commands import Part
from tqchat.text import printable, stable_width
from tqchat.ui.widgets.chat.live import LiveReply
from tqchat.ui.widgets.chat.log import PAGE, ChatLog

INVISIBLE = "\u00ad\u200b\u200e\u200f\u202a\u202e\u2060\u2066\ufeff\u3164\ufe0f"


def check(ui: RunningApp) -> None:
    """Check every cell: complete lines, no control characters, no links, no broken frame."""
    width, height = ui.app.size
    strips = drawn(ui.app)
    assert len(strips) == height
    for strip in strips:
        assert strip.cell_length == width, strip.text
        for segment in strip:
            for character in segment.text:
                assert unicodedata.category(character) not in ("Cc", "Cs"), repr(segment.text)
                assert character not in INVISIBLE, repr(segment.text)
            style = segment.style
            if style is not None:
                assert not style.link, segment.text
                assert "@click" not in style.meta, (segment.text, style.meta)
    frame = [strip.text for strip in strips]
    assert "tqchat" in frame[0] and "Conversations" in frame[1]
    assert sum(line.startswith("│") and line.count("│") >= 2 for line in frame) >= height - 8


def batches(texts: list[str], size: int) -> Iterator[list[str]]:
    remaining = iter(texts)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


async def check_all_views(ui: RunningApp, views: int = 1_000) -> None:
    """Check the log from top to bottom, in at most ``views`` views."""
    log = ui.app.query_one(ChatLog)
    await ui.pilot.pause()
    height = log.max_scroll_y
    step = max(log.size.height - 2, -(-height // views))
    for y in range(0, height + step, step):
        log.scroll_to(y=min(y, height), animate=False, immediate=True)
        await ui.pilot.pause()
        check(ui)


async def test_adversarial_messages_and_titles(open_app: OpenApp) -> None:
    short = [text for text in TEXTS if len(text) < 2_000]
    assert len(short) > 300
    async with open_app((120, 110)) as ui:
        for number, batch in enumerate(batches(short, PAGE)):
            made = ui.app.database.create(batch[number % len(batch)], "starter", "turbo0v4")
            for index, text in enumerate(batch):
                role = "user" if index % 4 == 0 else "assistant"
                ui.app.database.add_message(made.id, role, text, model=text if index % 5 == 0 else "starter")
            ui.app.chat.shown.open(made.id)
            await check_all_views(ui)
        assert ui.app._exit is False


async def test_very_long_texts(open_app: OpenApp) -> None:
    async with open_app((120, 40)) as ui:
        for text in LONG:
            made = ui.app.database.create(text[:3_000], "starter", "turbo0v4")
            ui.app.database.add_message(made.id, "user", text)
            ui.app.database.add_message(made.id, "assistant", text)
            ui.app.chat.shown.open(made.id)
            await check_all_views(ui, views=2)


SHAPES_OF_REPLIES: list[tuple[str, Part]] = [
    ("{}", "answer"),
    ("- {}", "answer"),
    ("```\n{}\n```\n", "answer"),
    ("{}", "reasoning"),
]


async def test_adversarial_replies_that_stream(open_app: OpenApp) -> None:
    texts = [*ESCAPES, *MARKUP, *CHARACTERS]
    async with open_app((120, 40)) as ui:
        for shape, part in SHAPES_OF_REPLIES:
            await ui.send("Go")
            before = len(ui.engine.sent())
            await ui.until(lambda before=before: ui.app.chat.turns.shown_reply)
            for text in texts:
                said = shape.replace("{}", text) + "\n\n"
                for start in range(0, len(said), 9):
                    ui.engine.delta(said[start : start + 9], part)
            whole = "".join(shape.replace("{}", text) + "\n\n" for text in texts)
            await ui.pilot.pause()
            check(ui)
            text, reasoning = (printable(whole), "") if part == "answer" else ("", printable(whole))
            ui.engine.done(text, reasoning=reasoning)
            await ui.until(lambda: ui.app.chat.work.reply is None)
            await check_all_views(ui, views=4)
            assert before <= len(ui.engine.sent())


async def test_a_reply_of_a_megabyte_does_not_block_the_screen(open_app: OpenApp) -> None:
    async with open_app((120, 40)) as ui:
        await ui.send("Go")
        await ui.until(lambda: ui.engine.sent())
        paragraph = "The *fox* went `home`. " * 40 + "\n\n"
        whole = paragraph * (1_000_000 // len(paragraph))
        ui.engine.delta(whole)
        await ui.shows("The fox went home.")
        await ui.pilot.press("escape")
        ui.engine.done(whole)
        await ui.until(lambda: ui.app.chat.work.reply is None)
        await ui.pilot.press("ctrl+n")
        await ui.shows("Ask something to begin.")
        ui.app.chat.shown.open(ui.app.database.conversations()[0].id)
        await ui.shows("more characters")
        check(ui)


def test_joined_characters_are_shown_side_by_side() -> None:
    joined = "\U0001f468\u200d\U0001f469 \u2764\ufe0f \U0001f44d\U0001f3fd"
    assert stable_width(joined) == "\U0001f468\U0001f469 \u2764 \U0001f44d"
    assert stable_width("e" + "\u0301" * 9) == "e" + "\u0301" * 3
    assert stable_width("a\u2028b") == "a\nb"
    assert stable_width("\u0915\u094d\u200d\u0937") == "\u0915\u094d\u200d\u0937", (
        "joiners belong to some scripts"
    )


async def test_streamed_and_shown_again_are_the_same(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("Go", "\u2764\ufe0f \u202eabc **bold**")
        await ui.shows("\u2764 abc bold")
        assert len(ui.app.query(LiveReply)) == 1
        await ui.pilot.press("ctrl+n", "alt+down")
        await ui.shows("\u2764 abc bold")
