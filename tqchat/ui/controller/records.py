"""The controller's plain data: replies, queued turns, pending changes, cache samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tqchat.engine.commands import Part
from tqchat.engine.events import Done, Failed, TextDelta
from tqchat.kv.memory import MemoryReport
from tqchat.store.database import Message
from tqchat.store.records import Role

Activity = Literal["opening", "reading", "answering", "converting", "summing up"]
"""Activity of the engine for a conversation."""


@dataclass(frozen=True)
class Sample:
    """Size of a conversation's cache at one number of tokens."""

    tokens: int
    bytes: int
    fp16_bytes: int
    scheme: str


@dataclass
class History:
    """Cache size over a conversation's tokens, with FP16's for comparison: the gauge's two curves.

    When ``limit`` samples are exceeded every second one is dropped, so the curve keeps its shape.
    """

    limit: int = 512
    samples: list[Sample] = field(default_factory=list)

    @classmethod
    def of(cls, messages: Sequence[Message], model: str) -> History:
        """From the figures stored with the replies of a model, since the last reply of another model."""
        history = cls()
        for one in messages:
            if one.role != "assistant":
                continue
            if one.model != model:
                history = cls()
            elif one.prompt_tokens and one.tokens and one.cache_bytes and one.fp16_bytes and one.scheme:
                tokens = one.prompt_tokens + one.tokens
                if not history.samples:
                    history._add(Sample(0, 0, 0, one.scheme))
                history._add(Sample(tokens, one.cache_bytes, one.fp16_bytes, one.scheme))
        return history

    def add(self, report: MemoryReport) -> None:
        """Add a report on a cache that is not empty; the same tokens and scheme replace the last sample."""
        if report.tokens:
            self._add(Sample(report.tokens, report.bytes, report.fp16_bytes, report.scheme))

    def _add(self, sample: Sample) -> None:
        while self.samples and self.samples[-1].tokens > sample.tokens:
            self.samples.pop()  # The cache was trimmed: another reply begins before these tokens.
        last = self.samples[-1] if self.samples else None
        if last is not None and (last.tokens, last.scheme) == (sample.tokens, sample.scheme):
            self.samples[-1] = sample
        else:
            self.samples.append(sample)
        if len(self.samples) > self.limit:
            self.samples = self.samples[:-1:2] + self.samples[-1:]


@dataclass
class Reply:
    """The reply being generated.

    Attributes:
        head_before: The conversation's head before the turn; restored if nothing is generated.
        prompt_text: The user's text, put back into the prompt in that case; ``None`` for a regenerated reply.
        message_id: ``None`` until the first text is in the database.
        text, reasoning: The answer, and the reasoning before it.
        continued: The cut-off reply that is being continued, as it was before.
        tokens_before: Tokens of the conversation before the turn, 0 if they were not counted.
        written_at: Clock time of the last write to the database; 0 before the first.
    """

    conversation_id: str
    head_before: str | None
    prompt_text: str | None
    model: str
    message_id: str | None = None
    text: str = ""
    reasoning: str = ""
    continued: Message | None = None
    tokens_before: int = 0
    written_at: float = 0.0
    stopping: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been generated, not even reasoning."""
        return not (self.text.strip() or self.reasoning)

    @property
    def pieces(self) -> list[TextDelta]:
        """Text generated so far, for a view that opens during the reply."""
        parts: tuple[tuple[Part, str], ...] = (("reasoning", self.reasoning), ("answer", self.text))
        return [TextDelta(self.conversation_id, text, part) for part, text in parts if text]

    def grow(self, event: TextDelta) -> None:
        """Add a piece."""
        if event.takes_answer:
            self.reasoning, self.text = self.reasoning + self.text, ""
        if event.part == "reasoning":
            self.reasoning += event.text
        else:
            self.text += event.text

    def replace(self, event: Done | Failed) -> None:
        """Take the whole reply, behind the text of the reply that is being continued, if any."""
        before = self.continued
        answer = before.content if before else ""
        reasoning = (before.reasoning or "") if before else ""
        if isinstance(event, Done) and event.takes_answer:
            reasoning, answer = reasoning + answer, ""
        self.text, self.reasoning = answer + event.text, reasoning + event.reasoning


@dataclass(frozen=True)
class QueuedTurn:
    """A message in the database that the engine has not started to answer.

    ``head_before`` and ``prompt_text`` as in ``Reply``; ``continues``: the last message is a cut-off reply.
    """

    conversation_id: str
    head_before: str | None
    prompt_text: str | None
    continues: bool = False


@dataclass(frozen=True)
class Fork:
    """Start of a branch: the message that the next one will follow.

    ``edited_id`` is the message of which it is another version, ``None`` for a branch below a reply. ``role``
    is the author of the next message: an edited reply is the model's, and is not answered.
    """

    parent_id: str | None
    edited_id: str | None = None
    role: Role = "user"


@dataclass(frozen=True)
class PendingScheme:
    """A scheme change that starts when the engine is free.

    Attributes:
        before: The scheme until it is done, and after a failure or a stop.
        within_auto: Whether the conversation's setting is ``auto`` before and after.
    """

    conversation_id: str
    scheme: str
    reread: bool
    before: str
    within_auto: bool = False


@dataclass(frozen=True)
class PendingSummary:
    """A summary being written: the messages that will follow it, and the head when it was asked for."""

    conversation_id: str
    kept: tuple[Message, ...]
    head: str | None
