"""What a model writes, on the screen: whole, in place, and never in command."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.ui.conftest import Open
from tqchat.store.database import Message
from tqchat.ui.widgets.chat.blocks import blocks
from tqchat.ui.widgets.chat.body import Body
from tqchat.ui.widgets.chat.layout import lines
from tqchat.ui.widgets.chat.live import LiveReply
from tqchat.ui.widgets.chat.log import MAX_MOUNTED, PAGE, ChatLog
from tqchat.ui.widgets.chat.message import Facts, FrozenMessage, footer

DOCUMENT = """Intro text.

```python
def hunt(mouse):
    return len(mouse) > 3
```

1. one
2. two
   - *a*
   - **b** `c`

| time | deed |
|------|------|
| dawn | 🦊 睡觉 |

> quoted

<div>kept</div>

The [end](http://example.com)."""


def message(content: str, role: str = "assistant", number: int = 0, status: str = "complete") -> Message:
    return Message(f"m{number}", "c", None, role, content, status, time.time())  # type: ignore[arg-type]


async def test_streamed_markdown_equals_the_whole_document(stage: Open) -> None:
    async with stage() as it:
        await it.ask("Go")
        await it.until(lambda: it.engine.sent())
        for start in range(0, len(DOCUMENT), 3):
            it.engine.delta(DOCUMENT[start : start + 3])
            if start % 30 == 0:
                await it.pilot.pause()
        it.engine.done(DOCUMENT)
        await it.until(lambda: it.app.chat.work.reply is None)
        reply = it.app.query_one(LiveReply)
        await it.until(lambda: reply.source == DOCUMENT)
        width = reply.query_one(Body).size.width
        streamed = [line.plain for body in reply.query(Body) for line in body.lines(width)]
        assert streamed == [line.plain for line in lines(blocks(DOCUMENT), width)]
        it.app.query_one(ChatLog).scroll_home(animate=False)
        for shown in ("Intro text.", "def hunt(mouse):", "◦ a", "睡觉"):
            await it.sees(shown)


async def test_html_is_shown_as_text(stage: Open) -> None:
    async with stage() as it:
        await it.chat("Go", "<script>alert(1)</script>\n\n<div>kept</div>")
        await it.sees("<div>kept</div>")
        await it.sees("<script>alert(1)</script>")


async def test_a_link_is_shown_not_followed(stage: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage() as it:
        followed: list[str] = []
        monkeypatch.setattr(it.app, "open_url", lambda url, **more: followed.append(url))
        await it.chat("Go", "[here](https://example.com/x)")
        await it.sees("here (https://example.com/x)")
        body = it.app.query_one(LiveReply).query_one(Body)
        await it.pilot.click(body, offset=(2, 0))
        await it.pilot.pause()
        assert followed == []


async def test_the_place_that_is_read_stays_while_text_streams(stage: Open) -> None:
    async with stage((100, 24)) as it:
        await it.chat("Go", "\n\n".join(f"Paragraph {number}." for number in range(40)))
        log = it.app.query_one(ChatLog)
        await it.until(lambda: log.max_scroll_y > 30 and log.scroll_y == log.max_scroll_y)
        await it.ask("More")
        await it.until(lambda: len(it.engine.sent()) == 2)
        await it.pilot.press("pageup")
        await it.until(lambda: log.scroll_y < log.max_scroll_y)
        place, height = log.scroll_y, log.max_scroll_y
        for number in range(30):
            it.engine.delta(f"Line {number}.\n\n")
        await it.until(lambda: log.max_scroll_y > height + 20)
        assert log.scroll_y == place
        while log.scroll_y < log.max_scroll_y:
            await it.pilot.press("pagedown")
            await it.pilot.pause(0.05)
        for number in range(30):
            it.engine.delta(f"Further {number}.\n\n")
        await it.sees("Further 29.")
        assert log.scroll_y == log.max_scroll_y, "at the end the log follows again"


async def test_a_long_sitting_keeps_few_widgets_and_loses_no_message(stage: Open) -> None:
    async with stage() as it:
        database = it.app.database
        long = database.create("Long", None, "turbo0v4")
        for number in range(2 * PAGE):
            database.add_message(long.id, "user" if number % 2 == 0 else "assistant", f"Message {number}")
        it.app.chat.shown.open(long.id)
        log = it.app.query_one(ChatLog)
        await it.sees(f"Message {2 * PAGE - 1}")
        for number in range(MAX_MOUNTED):
            log.add(message(f"New {number}", "user", number))
        await it.pilot.pause()
        await it.until(lambda: len(log.query(FrozenMessage)) <= MAX_MOUNTED)
        await it.sees(f"New {MAX_MOUNTED - 1}")
        while log.scroll_y > 0 or log.query_one(".earlier").display:
            log.scroll_home(animate=False)
            await it.pilot.pause(0.02)
        await it.sees("Message 0")
        assert len(log.query(FrozenMessage)) == 2 * PAGE + MAX_MOUNTED


async def test_a_long_conversation_opens_at_its_end_and_loads_what_is_earlier(stage: Open) -> None:
    async with stage() as it:
        database = it.app.database
        long = database.create("Long", None, "turbo0v4")
        for number in range(100):
            database.add_message(long.id, "user" if number % 2 == 0 else "assistant", f"Message {number}")
        it.app.chat.shown.open(long.id)
        await it.sees("Message 99")
        log = it.app.query_one(ChatLog)
        assert len(log.query(FrozenMessage)) == PAGE
        log.scroll_home(animate=False)
        await it.until(lambda: len(log.query(FrozenMessage)) == 2 * PAGE)
        await it.sees(f"Message {100 - PAGE}")
        assert log.scroll_y > 0, "what was read stays in place"


async def test_a_reply_in_another_conversation_is_whole_when_one_comes_back(stage: Open) -> None:
    async with stage() as it:
        await it.ask("Tell")
        await it.until(lambda: it.engine.sent())
        it.engine.delta("Once **upon** ")
        await it.sees("Once upon")
        await it.pilot.press("ctrl+n")
        await it.sees("Ask something to begin.")
        it.engine.delta("a time ")
        await it.pilot.press("alt+down")
        await it.sees("Once upon a time")
        it.engine.delta("there was.")
        it.engine.done("Once **upon** a time there was.")
        await it.sees("Once upon a time there was.")


def test_the_footer_says_how_a_reply_ended() -> None:
    assert footer(message("x")) is None
    said = footer(replace(message("x"), tokens=40, drafted=30, accepted=21))
    assert said is not None and said.plain == "40 tok · 21 of 30 drafted"
    said = footer(message("x", status="unfinished"))
    assert said is not None and said.plain == "unfinished"
    said = footer(message("x"), Facts("cut at the length limit", 2, 3))
    assert said is not None and said.plain == "cut at the length limit · 2/3"
