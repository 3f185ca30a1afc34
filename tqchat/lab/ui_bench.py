"""Screen latency: opening a long conversation, and the event loop's lag while a reply streams.

Runs the real app without a terminal, with an engine that streams a fixed text at a given speed.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING

from tqchat.engine import commands, events
from tqchat.engine.requests.request import Request, Ticket
from tqchat.kv.memory import LayerReport, MemoryReport
from tqchat.kv.scheme import parse_scheme
from tqchat.paths import Paths

if TYPE_CHECKING:
    from tqchat.ui.app import TqchatApp

TERMINAL_SIZE = (120, 40)
PROBE_INTERVAL_S = 0.005
TIMEOUT_S = 60.0
_LAYERS, _HEADS, _DIM = 24, 8, 128
_SCHEME = "turbo0v4"


@dataclass(frozen=True)
class ScreenRow:
    """One conversation length. Lag is how late a sleep in the event loop ends.

    ``busy`` is the loop thread's processor time meanwhile: the screen's own cost, without other load.
    """

    messages: int
    tokens_per_second: float
    opening_seconds: float
    lag_p50_ms: float
    lag_p95_ms: float
    lag_max_ms: float
    busy_p95_ms: float
    busy_max_ms: float
    widgets: int


def measure(
    lengths: Iterable[int] = (20, 200, 1000), tokens_per_second: float = 60.0, seconds: float = 10.0
) -> list[ScreenRow]:
    """Open a conversation of each length and stream a reply into it.

    Args:
        lengths: Messages in the conversation.
        tokens_per_second: Speed of the reply.
        seconds: Duration of the reply.
    """
    text = (Path(__file__).parent / "text.txt").read_text(encoding="utf-8")
    return [asyncio.run(_measure(length, tokens_per_second, seconds, text)) for length in lengths]


async def _measure(length: int, speed: float, seconds: float, text: str) -> ScreenRow:
    from tqchat.settings import Settings
    from tqchat.ui.app import TqchatApp
    from tqchat.ui.gc_pauses import freeze_gc

    with tempfile.TemporaryDirectory() as home:
        paths = Paths(*(Path(home) / name for name in ("config", "state", "data", "cache", "log")))
        paths.ensure()
        conversation_id = _store_conversation(paths, length, text)
        app = TqchatApp(paths, Settings(), engine=lambda say: StreamingEngine(say, text, speed, seconds))
        async with app.run_test(size=TERMINAL_SIZE):
            await _until(lambda: app.chat.models.current is not None)
            freeze_gc()  # as the app does in a terminal
            began = time.perf_counter()
            app.chat.shown.open(conversation_id)
            await _drawn(app)
            opening = time.perf_counter() - began
            await _until(lambda: app.chat.work.activity is None)
            app.chat.turns.send("And what happened then?")
            await _until(lambda: bool(app.chat.work.reply and app.chat.work.reply.text))
            lags, busy = await _sample_lag(lambda: app.chat.work.reply is not None)
            widgets = sum(1 for _ in app.screen.walk_children())
            await app.action_quit()
            await _until(lambda: app._exit)
    cuts = quantiles(lags, n=100, method="inclusive")
    figures = (cuts[49], cuts[94], max(lags), quantiles(busy, n=100, method="inclusive")[94], max(busy))
    p50, p95, worst, busy_p95, busiest = (round(1000 * seconds, 1) for seconds in figures)
    return ScreenRow(length, speed, round(opening, 3), p50, p95, worst, busy_p95, busiest, widgets)


def _store_conversation(paths: Paths, length: int, text: str) -> str:
    """Store a conversation of ``length`` messages whose replies have lists, code and tables; its id."""
    from tqchat.store.database import Database, Message
    from tqchat.store.rows import insert_message, new_id

    with Database(paths.database) as database:
        conversation = database.create("A long conversation", "starter", _SCHEME)
        parent: str | None = None
        with database.writing() as connection:
            for number, piece in enumerate(itertools.islice(_pieces(text), length)):
                reply = number % 2 == 1
                content = _as_markdown(piece, number) if reply else piece[:80]
                message = Message(
                    new_id(),
                    conversation.id,
                    parent,
                    "assistant" if reply else "user",
                    content,
                    "complete",
                    time.time(),
                    tokens=120,
                    tokens_per_second=60.0,
                    first_token_seconds=0.2,
                )
                insert_message(connection, message)
                parent = message.id
        if parent is not None:
            database.rewind_to(conversation.id, parent)
    return conversation.id


def _pieces(text: str) -> Iterable[str]:
    """Parts of the text of 400 characters, repeated."""
    starts = range(0, max(1, len(text) - 400), 400)
    return (text[start : start + 400] for start in itertools.cycle(starts))


def _as_markdown(piece: str, number: int) -> str:
    """A piece of text with Markdown as models write it."""
    lines = [line for line in piece.splitlines() if line.strip()]
    return (
        f"## Part {number}\n\n{piece}\n\n"
        + "\n".join(f"- **{line[:20]}** {line[20:60]}" for line in lines[:3])
        + f"\n\n```python\ndef part_{number}(text):\n    return text[:{number}]\n```\n\n"
        + "| word | length |\n|---|---|\n"
        + "\n".join(f"| {word} | {len(word)} |" for word in piece.split()[:3])
    )


async def _sample_lag(while_: Callable[[], bool]) -> tuple[list[float], list[float]]:
    """Event-loop lag and the loop thread's processor time in seconds, sampled while ``while_`` holds."""
    lags, busy = [0.0, 0.0], [0.0, 0.0]
    while while_():
        asked, spent = time.perf_counter(), time.thread_time()
        await asyncio.sleep(PROBE_INTERVAL_S)
        lags.append(max(0.0, time.perf_counter() - asked - PROBE_INTERVAL_S))
        busy.append(time.thread_time() - spent)
    return lags, busy


async def _drawn(app: TqchatApp) -> None:
    """Wait until messages are laid out and painted."""
    from tqchat.ui.widgets.chat.message import FrozenMessage

    await _until(lambda: any(view.size.height for view in app.screen.query(FrozenMessage)))
    painted = asyncio.Event()
    app.screen.call_after_refresh(painted.set)
    await asyncio.wait_for(painted.wait(), TIMEOUT_S)


async def _until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError("the screen did not reach the expected state")
        await asyncio.sleep(0.01)


class StreamingEngine:
    """An engine without a model: streams a text word by word, with memory reports of a growing cache."""

    def __init__(self, say: Callable[[events.Event], None], text: str, speed: float, seconds: float) -> None:
        self._say, self._speed, self._seconds = say, speed, seconds
        self._words = _as_markdown(text, 1).split(" ")
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Do nothing: threads start with a reply."""

    def submit(self, command: commands.Command) -> None:
        """Answer at once; stream a reply from its own thread."""
        match command:
            case commands.LoadModel():
                info = events.ModelInfo("starter", "starter", "0", "llama", _LAYERS, 0, None, "none", 10**9)
                self._say(events.ModelReady(info, 0.0))
            case commands.OpenConversation():
                self._say(events.Opened(command.conversation_id, 0, 0.0))
            case commands.Send():
                thread = threading.Thread(target=self._stream, args=(command,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def ask(self, request: Request, receive: Callable[[events.Event], None]) -> Ticket:
        """Take a request that is never answered."""
        return Ticket(request, receive)

    def _stream(self, command: commands.Send) -> None:
        words: list[str] = []
        began = time.monotonic()
        for number, word in enumerate(itertools.cycle(self._words), 1):
            due = began + number / self._speed
            if number / self._speed > self._seconds or self._stop.wait(max(0.0, due - time.monotonic())):
                break
            words.append(f"{word} ")
            self._say(events.TextDelta(command.conversation_id, words[-1]))
            if number % max(1, int(self._speed / 4)) == 0:
                self._say(events.MemoryUpdate(command.conversation_id, _report(number), self._speed))
        count = len(words)
        counts = events.TokenCounts(count, 0, 0, 0, count)
        self._say(
            events.Done(
                command.conversation_id, "".join(words), "stop", counts, 0.0, self._speed, 0.0, _SCHEME,
                "starter", _report(count),
            )
        )  # fmt: skip

    def stop(self) -> None:
        """End the reply."""
        self._stop.set()

    def cancel_download(self) -> None:
        """Do nothing."""

    def shutdown(self, timeout: float) -> None:
        """End the threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout)


def _report(generated: int) -> MemoryReport:
    """The report of a mid-sized model's cache of 3,000 tokens plus ``generated``."""
    tokens = 3000 + generated
    scheme = parse_scheme(_SCHEME)
    packed = scheme.packable(tokens - scheme.sinks)
    raw = 2 * _DIM
    key = _HEADS * tokens * raw
    value = _HEADS * (packed * scheme.value.bytes_per_vector(_DIM) + (tokens - packed) * raw)
    tail = tokens - packed - scheme.sinks
    layer = (key, value, key + value, key + value + 4096, 2 * key, packed, tail, scheme.sinks)
    return MemoryReport(
        _SCHEME,
        tokens,
        tuple(
            LayerReport(index, "full", _SCHEME, None, tokens, *layer, _HEADS, _DIM, _DIM)
            for index in range(_LAYERS)
        ),
    )


if __name__ == "__main__":
    for row in measure():
        print(row)
