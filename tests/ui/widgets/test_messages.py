"""Messages on the screen: layout, scrolling, streaming, links."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.ui.conftest import OpenApp
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

| time | what |
|------|------|
| dawn | 🦊 睡觉 |

> quoted

<div>kept</div>

The [end](http://example.com)."""


def message(content: str, role: str = "assistant", number: int = 0, status: str = "complete") -> Message:
    return Message(f"m{number}", "c", None, role, content, status, time.time())  # type: ignore[arg-type]


async def test_streamed_markdown_equals_the_complete_document(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.send("Go")
        await ui.until(lambda: ui.engine.sent())
        for start in range(0, len(DOCUMENT), 3):
            ui.engine.delta(DOCUMENT[start : start + 3])
            if start % 30 == 0:
                await ui.pilot.pause()
        ui.engine.done(DOCUMENT)
        await ui.until(lambda: ui.app.chat.work.reply is None)
        reply = ui.app.query_one(LiveReply)
        await ui.until(lambda: reply.source == DOCUMENT)
        width = reply.query_one(Body).size.width
        streamed = [line.plain for body in reply.query(Body) for line in body.lines(width)]
        assert streamed == [line.plain for line in lines(blocks(DOCUMENT), width)]
        ui.app.query_one(ChatLog).scroll_home(animate=False)
        for shown in ("Intro text.", "def hunt(mouse):", "◦ a", "睡觉"):
            await ui.shows(shown)


async def test_html_is_shown_as_text(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("Go", "<script>alert(1)</script>\n\n<div>kept</div>")
        await ui.shows("<div>kept</div>")
        await ui.shows("<script>alert(1)</script>")


async def test_a_click_on_a_link_does_not_open_it(open_app: OpenApp, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_app() as ui:
        followed: list[str] = []
        monkeypatch.setattr(ui.app, "open_url", lambda url, **more: followed.append(url))
        await ui.turn("Go", "[here](https://example.com/x)")
        await ui.shows("here (https://example.com/x)")
        body = ui.app.query_one(LiveReply).query_one(Body)
        await ui.pilot.click(body, offset=(2, 0))
        await ui.pilot.pause()
        assert followed == []


async def test_the_scroll_position_stays_while_text_streams(open_app: OpenApp) -> None:
    async with open_app((100, 24)) as ui:
        await ui.turn("Go", "\n\n".join(f"Paragraph {number}." for number in range(40)))
        log = ui.app.query_one(ChatLog)
        await ui.until(lambda: log.max_scroll_y > 30 and log.scroll_y == log.max_scroll_y)
        await ui.send("More")
        await ui.until(lambda: len(ui.engine.sent()) == 2)
        await ui.pilot.press("pageup")
        await ui.until(lambda: log.scroll_y < log.max_scroll_y)
        place, height = log.scroll_y, log.max_scroll_y
        for number in range(30):
            ui.engine.delta(f"Line {number}.\n\n")
        await ui.until(lambda: log.max_scroll_y > height + 20)
        assert log.scroll_y == place
        while log.scroll_y < log.max_scroll_y:
            await ui.pilot.press("pagedown")
            await ui.pilot.pause(0.05)
        for number in range(30):
            ui.engine.delta(f"Further {number}.\n\n")
        await ui.shows("Further 29.")
        assert log.scroll_y == log.max_scroll_y, "at the end the log follows again"


async def test_a_long_session_keeps_few_widgets_and_all_messages(open_app: OpenApp) -> None:
    async with open_app() as ui:
        database = ui.app.database
        long = database.create("Long", None, "turbo0v4")
        for number in range(2 * PAGE):
            database.add_message(long.id, "user" if number % 2 == 0 else "assistant", f"Message {number}")
        ui.app.chat.shown.open(long.id)
        log = ui.app.query_one(ChatLog)
        await ui.shows(f"Message {2 * PAGE - 1}")
        for number in range(MAX_MOUNTED):
            log.add(message(f"New {number}", "user", number))
        await ui.pilot.pause()
        await ui.until(lambda: len(log.query(FrozenMessage)) <= MAX_MOUNTED)
        await ui.shows(f"New {MAX_MOUNTED - 1}")
        while log.scroll_y > 0 or log.query_one(".earlier").display:
            log.scroll_home(animate=False)
            await ui.pilot.pause(0.02)
        await ui.shows("Message 0")
        assert len(log.query(FrozenMessage)) == 2 * PAGE + MAX_MOUNTED


async def test_a_long_conversation_opens_at_its_end_and_loads_earlier_messages(open_app: OpenApp) -> None:
    async with open_app() as ui:
        database = ui.app.database
        long = database.create("Long", None, "turbo0v4")
        for number in range(100):
            database.add_message(long.id, "user" if number % 2 == 0 else "assistant", f"Message {number}")
        ui.app.chat.shown.open(long.id)
        await ui.shows("Message 99")
        log = ui.app.query_one(ChatLog)
        assert len(log.query(FrozenMessage)) == PAGE
        log.scroll_home(animate=False)
        await ui.until(lambda: len(log.query(FrozenMessage)) == 2 * PAGE)
        await ui.shows(f"Message {100 - PAGE}")
        assert log.scroll_y > 0, "the visible messages stay in place"


async def test_a_reply_is_complete_after_switching_conversations(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.send("Tell")
        await ui.until(lambda: ui.engine.sent())
        ui.engine.delta("Once **upon** ")
        await ui.shows("Once upon")
        await ui.pilot.press("ctrl+n")
        await ui.shows("Ask something to begin.")
        ui.engine.delta("a time ")
        await ui.pilot.press("alt+down")
        await ui.shows("Once upon a time")
        ui.engine.delta("there was.")
        ui.engine.done("Once **upon** a time there was.")
        await ui.shows("Once upon a time there was.")


def test_the_footer_shows_how_a_reply_ended() -> None:
    assert footer(message("x")) is None
    said = footer(replace(message("x"), tokens=40, drafted=30, accepted=21))
    assert said is not None and said.plain == "40 tok · 21 of 30 drafted"
    said = footer(message("x", status="unfinished"))
    assert said is not None and said.plain == "unfinished"
    said = footer(message("x"), Facts("cut at the length limit", 2, 3))
    assert said is not None and said.plain == "cut at the length limit · 2/3"
