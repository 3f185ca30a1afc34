"""What the controller knows besides the database: plain data with one owner, no widgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tqchat.kv.memory import MemoryReport
from tqchat.store.database import Message

Activity = Literal["opening", "reading", "answering", "converting", "summing up"]
"""What the engine is doing for a conversation."""


@dataclass(frozen=True)
class Sample:
    """One moment of a conversation's cache."""

    tokens: int
    bytes: int
    fp16_bytes: int
    scheme: str


@dataclass
class History:
    """The gauge's two curves: what the cache took, and what FP16 would have taken, over the conversation.

    Bounded: when it is full every second sample goes, so that a long conversation keeps its whole shape.
    """

    limit: int = 512
    samples: list[Sample] = field(default_factory=list)

    @classmethod
    def of(cls, messages: Sequence[Message], model: str) -> History:
        """From nothing to what is on record of the replies of this model, since the last of another's."""
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
        """Remember a report, unless of an empty cache. Another figure for the same tokens and scheme replaces
        the last sample.
        """
        if report.tokens:
            self._add(Sample(report.tokens, report.bytes, report.fp16_bytes, report.scheme))

    def _add(self, sample: Sample) -> None:
        while self.samples and self.samples[-1].tokens > sample.tokens:
            self.samples.pop()  # Those tokens were taken back: another reply begins before them.
        last = self.samples[-1] if self.samples else None
        if last is not None and (last.tokens, last.scheme) == (sample.tokens, sample.scheme):
            self.samples[-1] = sample
        else:
            self.samples.append(sample)
        if len(self.samples) > self.limit:
            self.samples = self.samples[:-1:2] + self.samples[-1:]


@dataclass
class Reply:
    """The reply being generated. ``message_id`` is ``None`` until its first words are in the database.

    ``head_before`` is where the conversation's head goes back to if nothing is answered; ``returns`` is the
    text that then returns to the prompt, ``None`` for a regenerated reply. ``continued`` is the cut-off reply
    that this one goes on with, as it was.
    """

    conversation_id: str
    head_before: str | None
    returns: str | None
    model: str
    message_id: str | None = None
    text: str = ""
    continued: Message | None = None
    written: float = 0.0
    stopping: bool = False


@dataclass(frozen=True)
class Waiting:
    """A message that is on disk and waits for the engine: for a model, or for another reply to end."""

    conversation_id: str
    head_before: str | None
    returns: str | None
    continues: bool = False


@dataclass(frozen=True)
class Fork:
    """Where the person's next message goes, if not to the end: the message it will follow.

    ``edits`` is the message that it will stand beside, ``None`` for a new branch below an earlier reply.
    """

    parent_id: str | None
    edits: str | None = None


@dataclass(frozen=True)
class SchemeWish:
    """A scheme change that waits until the engine is free."""

    conversation_id: str
    scheme: str
    reread: bool


@dataclass
class Caches:
    """What is known of each conversation's cache, by conversation id."""

    reports: dict[str, MemoryReport] = field(default_factory=dict)
    histories: dict[str, History] = field(default_factory=dict)
    disk_bytes: dict[str, int] = field(default_factory=dict)
    returned: dict[str, str] = field(default_factory=dict)
    """How the cache came back when the conversation was opened, in a sentence."""

    def count(self, conversation_id: str, report: MemoryReport) -> None:
        """The engine has counted a live cache."""
        self.reports[conversation_id] = report
        self.histories.setdefault(conversation_id, History()).add(report)

    def forget(self, conversation_id: str) -> None:
        """The conversation is gone."""
        self.forget_live(conversation_id)
        self.disk_bytes.pop(conversation_id, None)

    def forget_live(self, conversation_id: str) -> None:
        """The conversation's cache is not in memory any more."""
        for known in (self.reports, self.histories, self.returned):
            known.pop(conversation_id, None)

    def another_model(self) -> None:
        """Caches of the model before are of no use to this one."""
        for known in (self.reports, self.histories, self.returned):
            known.clear()
