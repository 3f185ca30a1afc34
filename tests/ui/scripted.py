"""A scripted engine: tests decide when it emits which event."""

from __future__ import annotations

from collections.abc import Callable

from tqchat.engine import commands, events
from tqchat.engine.requests.request import Request, Ticket
from tqchat.kv.memory import LayerReport, MemoryReport
from tqchat.kv.scheme import parse_scheme

HEADS, DIM, LAYERS = 4, 64, 8
INFO = events.ModelInfo(
    "starter 30M",
    commands.STARTER,
    "f00d",
    "llama",
    LAYERS,
    31_000_000,
    4096,
    "CPU",
    sampling=commands.Sampling(temperature=0.7, top_p=0.95),
)


def report(tokens: int, scheme: str = "turbo0v4", bypassed: int = 0) -> MemoryReport:
    """A memory report of ``LAYERS`` layers; the first ``bypassed`` are uncompressed."""
    wanted = parse_scheme(scheme)
    layers = []
    for index in range(LAYERS):
        raw = index < bypassed
        packed = 0 if raw or not wanted.compresses else wanted.packable(tokens)
        key = HEADS * (packed * wanted.key.bytes_per_vector(DIM) + (tokens - packed) * 2 * DIM)
        value = HEADS * (packed * wanted.value.bytes_per_vector(DIM) + (tokens - packed) * 2 * DIM)
        sinks = min(tokens, wanted.sinks)
        layers.append(
            LayerReport(
                index,
                "sliding" if raw else "full",
                scheme,
                "sliding windows stay raw" if raw else None,
                tokens,
                key,
                value,
                key + value,
                key + value + 4096,
                tokens * HEADS * DIM * 4,
                packed,
                tokens - packed - sinks,
                sinks,
                HEADS,
                DIM,
                DIM,
            )
        )
    return MemoryReport(scheme, tokens, tuple(layers), 256)


def estimate(ref: str) -> events.ModelEstimate:
    return events.ModelEstimate(ref, 31_000_000, report(1, "fp16", bypassed=2), 4096, 10**8, 10**9)


class ScriptedEngine:
    """Records commands; answers all but ``Send`` and ``Compose`` at once, those when a test asks for it."""

    def __init__(self, on_event: Callable[[events.Event], None], *, loads: bool = True) -> None:
        self.emit = on_event
        self.loads, self.opens, self.converts = loads, True, True
        self.commands: list[commands.Command] = []
        self.tickets: list[Ticket] = []
        self.stops = self.cancels = 0
        self.started = self.ended = False
        self.restored: events.Opened | None = None
        self.tokens: dict[str, int] = {}
        self.schemes: dict[str, str] = {}

    def start(self) -> None:
        self.started = True

    def submit(self, command: commands.Command) -> None:
        self.commands.append(command)
        match command:
            case commands.LoadModel() if self.loads:
                self.ready()
            case commands.EstimateModel():
                self.emit(estimate(command.ref))
            case commands.Send():
                self.schemes[command.conversation_id] = command.scheme
            case commands.OpenConversation() if self.opens:
                self.emit(self.restored or events.Opened(command.conversation_id, 0, 0.0))
            case commands.SetScheme() if self.converts:
                self._convert(command)

    def ask(self, request: Request, receive: Callable[[events.Event], None]) -> Ticket:
        self.tickets.append(Ticket(request, receive))
        return self.tickets[-1]

    def stop(self) -> None:
        self.stops += 1

    def cancel_download(self) -> None:
        self.cancels += 1

    def shutdown(self, timeout: float) -> None:
        self.ended = True

    # Called by tests

    def ready(self, info: events.ModelInfo = INFO) -> None:
        self.emit(events.ModelReady(info, 0.5))

    def sent(self) -> list[commands.Send]:
        return [command for command in self.commands if isinstance(command, commands.Send)]

    def composing(self) -> list[commands.Compose]:
        return [command for command in self.commands if isinstance(command, commands.Compose)]

    def compose(self, text: str) -> None:
        """Answer the last request for a title or a summary."""
        asked = self.composing()[-1]
        self.emit(events.Composed(asked.conversation_id, asked.purpose, text))

    def delta(self, text: str, part: commands.Part = "answer", takes_answer: bool = False) -> None:
        self.emit(events.TextDelta(self.sent()[-1].conversation_id, text, part, takes_answer))

    def count(self, tokens: int, speed: float | None = 71.0) -> None:
        send = self.sent()[-1]
        self.tokens[send.conversation_id] = tokens
        self.emit(events.MemoryUpdate(send.conversation_id, report(tokens, send.scheme), speed))

    def done(
        self, text: str, reason: events.StopReason = "stop", tokens: int = 300, *, reasoning: str = ""
    ) -> None:
        send = self.sent()[-1]
        self.tokens[send.conversation_id] = tokens
        counts = events.TokenCounts(40, 0, 0, 40, tokens - 40)
        self.emit(
            events.Done(
                send.conversation_id,
                text,
                reason,
                counts,
                900.0,
                71.0,
                0.2,
                send.scheme,
                INFO.name,
                report(tokens, send.scheme),
                reasoning=reasoning,
                reasoning_tokens=len(reasoning.split()),
                reasoning_seconds=2.0 if reasoning else 0.0,
            )
        )
        self.emit(events.Saved(send.conversation_id, tokens, report(tokens, send.scheme).bytes + 900, 0.1))

    def reply(self, text: str, tokens: int = 300, step: int = 7) -> None:
        """A streamed reply, with a memory report for each piece."""
        pieces = [text[start : start + step] for start in range(0, len(text), step)]
        before = self.tokens.get(self.sent()[-1].conversation_id, 0)
        for index, piece in enumerate(pieces):
            self.delta(piece)
            self.count(before + max(1, (tokens - before) * (index + 1) // len(pieces)))
        self.done(text, tokens=tokens)

    def _convert(self, command: commands.SetScheme) -> None:
        previous = self.schemes.get(command.conversation_id, "turbo0v4")
        self.schemes[command.conversation_id] = command.scheme
        tokens = self.tokens.get(command.conversation_id, 0)
        before, after = report(tokens, previous), report(tokens, command.scheme)
        kept = not command.reread and after.bytes > before.bytes
        self.emit(
            events.SchemeChanged(
                command.conversation_id,
                command.scheme,
                previous,
                tokens,
                0.2,
                command.reread,
                kept,
                before.bytes,
                after.bytes,
                after,
            )
        )
