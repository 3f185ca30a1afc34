"""Hundreds of hostile texts through the real widgets: nothing steers, nothing breaks the layout."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator

from tests.ui.conftest import Open, Stage
from tests.ui.hostile import CHARACTERS, ESCAPES, LONG, MARKUP, TEXTS
from tqchat.text import printable, stable_width
from tqchat.ui.widgets.chat.live import LiveReply
from tqchat.ui.widgets.chat.log import PAGE, ChatLog

INVISIBLE = "\u00ad\u200b\u200e\u200f\u202a\u202e\u2060\u2066\ufeff\u3164\ufe0f"


def check(it: Stage) -> None:
    """What is on the screen is whole and harmless, cell by cell."""
    width, height = it.app.size
    strips = it.app.screen._compositor.render_strips()
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
    it = iter(texts)
    while batch := list(itertools.islice(it, size)):
        yield batch


async def look_through(it: Stage, views: int = 1_000) -> None:
    """See the log from top to bottom, in no more than so many views."""
    log = it.app.query_one(ChatLog)
    await it.pilot.pause()
    height = log.max_scroll_y
    step = max(log.size.height - 2, -(-height // views))
    for y in range(0, height + step, step):
        log.scroll_to(y=min(y, height), animate=False, immediate=True)
        await it.pilot.pause()
        check(it)


async def test_messages_titles_and_questions(stage: Open) -> None:
    short = [text for text in TEXTS if len(text) < 2_000]
    assert len(short) > 300
    async with stage((120, 110)) as it:
        for number, batch in enumerate(batches(short, PAGE)):
            made = it.app.database.create(batch[number % len(batch)], "starter", "turbo0v4")
            for index, text in enumerate(batch):
                role = "user" if index % 4 == 0 else "assistant"
                it.app.database.add_message(made.id, role, text, model=text if index % 5 == 0 else "starter")
            it.app.chat.shown.open(made.id)
            await look_through(it)
        assert it.app._exit is False


async def test_very_long_ones(stage: Open) -> None:
    async with stage((120, 40)) as it:
        for text in LONG:
            made = it.app.database.create(text[:3_000], "starter", "turbo0v4")
            it.app.database.add_message(made.id, "user", text)
            it.app.database.add_message(made.id, "assistant", text)
            it.app.chat.shown.open(made.id)
            await look_through(it, views=2)


async def test_replies_that_stream(stage: Open) -> None:
    texts = [*ESCAPES, *MARKUP, *CHARACTERS]
    async with stage((120, 40)) as it:
        for shape in ("{}", "- {}", "```\n{}\n```\n", "<think>{}"):
            await it.ask("Go")
            before = len(it.engine.sent())
            await it.until(lambda before=before: it.app.chat.turns.shown_reply)
            for text in texts:
                said = shape.replace("{}", text) + "\n\n"
                for start in range(0, len(said), 9):
                    it.engine.delta(said[start : start + 9])
            whole = "".join(shape.replace("{}", text) + "\n\n" for text in texts)
            await it.pilot.pause()
            check(it)
            it.engine.done(printable(whole))
            await it.until(lambda: it.app.chat.work.reply is None)
            await look_through(it, views=4)
            assert before <= len(it.engine.sent())


async def test_a_reply_of_a_megabyte_keeps_the_screen_alive(stage: Open) -> None:
    async with stage((120, 40)) as it:
        await it.ask("Go")
        await it.until(lambda: it.engine.sent())
        paragraph = "The *fox* went `home`. " * 40 + "\n\n"
        whole = paragraph * (1_000_000 // len(paragraph))
        it.engine.delta(whole)
        await it.sees("The fox went home.")
        await it.pilot.press("escape")
        it.engine.done(whole)
        await it.until(lambda: it.app.chat.work.reply is None)
        await it.pilot.press("ctrl+n")
        await it.sees("Ask something to begin.")
        it.app.chat.shown.open(it.app.database.conversations()[0].id)
        await it.sees("more characters")
        check(it)


def test_what_is_joined_elsewhere_stands_side_by_side() -> None:
    joined = "\U0001f468\u200d\U0001f469 \u2764\ufe0f \U0001f44d\U0001f3fd"
    assert stable_width(joined) == "\U0001f468\U0001f469 \u2764 \U0001f44d"
    assert stable_width("e" + "\u0301" * 9) == "e" + "\u0301" * 3
    assert stable_width("a\u2028b") == "a\nb"
    assert stable_width("\u0915\u094d\u200d\u0937") == "\u0915\u094d\u200d\u0937", (
        "joiners belong to some scripts"
    )


async def test_streamed_and_shown_again_are_the_same(stage: Open) -> None:
    async with stage() as it:
        await it.chat("Go", "\u2764\ufe0f \u202eabc **bold**")
        await it.sees("\u2764 abc bold")
        assert len(it.app.query(LiveReply)) == 1
        await it.pilot.press("ctrl+n", "alt+down")
        await it.sees("\u2764 abc bold")
