"""Events that the engine thread sends to the application: plain data, no MLX."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tqchat.engine.commands import Part, Sampling, ToolCall
from tqchat.kv.memory import MemoryReport

StopReason = Literal["stop", "length", "stopped", "context", "memory"]

MIN_REREAD_NOTICE_TOKENS = 64
"""From this many tokens on that are read again, the user is told."""


@dataclass(frozen=True)
class ModelInfo:
    """A loaded model.

    Attributes:
        weight_bytes: Bytes of the weights in memory.
        context_limit: In tokens, ``None`` if the model states none.
        memory_budget: Bytes that one conversation's cache may take, ``None`` if unknown.
        shapes: Report on a cache of one token.
        sampling: The model's default sampling.
        warning: A sentence about what of its files is ignored.
        thinking_choices: What the reasoning switch of its chat template can be set to.
        thinking_default: Which of them it does by itself, ``None`` if unknown.
        adapter: Name of the LoRA adapter that was added.
    """

    name: str
    ref: str
    fingerprint: str
    architecture: str
    layers: int
    weight_bytes: int
    context_limit: int | None
    device: str
    memory_budget: int | None = None
    shapes: MemoryReport | None = None
    sampling: Sampling = field(default_factory=Sampling)
    warning: str | None = None
    thinking_choices: tuple[str, ...] = ()
    thinking_default: str | None = None
    adapter: str | None = None

    @property
    def label(self) -> str:
        """Name for the screen, with the adapter's."""
        return self.label_with(self.adapter)

    def label_with(self, adapter: str | None) -> str:
        """Name for the screen with an adapter's name."""
        return self.name if adapter is None else f"{self.name} + {adapter}"


@dataclass(frozen=True)
class ModelProgress:
    """A model is being downloaded or loaded."""

    ref: str
    stage: Literal["downloading", "loading"]
    done_bytes: int | None = None
    total_bytes: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class ModelReady:
    """The model is loaded and current."""

    info: ModelInfo
    seconds: float


@dataclass(frozen=True)
class ModelFailed:
    """The model could not be downloaded or loaded; the previous one, if any, stays current."""

    ref: str
    message: str


@dataclass(frozen=True)
class ModelEstimate:
    """Memory that a model would take on this machine, before it is loaded.

    Attributes:
        weight_bytes: Bytes of the weights once loaded.
        shapes: Report on a cache of one token.
        memory_budget: Bytes that one conversation's cache may take.
        memory_bytes: Memory of the device.
        problem: Why it cannot be loaded.
    """

    ref: str
    weight_bytes: int = 0
    shapes: MemoryReport | None = None
    context_limit: int | None = None
    memory_budget: int = 0
    memory_bytes: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class Opened:
    """A conversation is current.

    ``restored`` of its ``tokens`` came from disk, under the ``scheme`` that they were saved with (empty if
    none did); ``reason`` says why some are missing. ``tokens`` is 0 if they have not been counted.
    """

    conversation_id: str
    restored: int
    seconds: float
    reason: str | None = None
    tokens: int = 0
    scheme: str = ""


@dataclass(frozen=True)
class PrefillProgress:
    """The prompt is being read: ``done`` of ``total`` new tokens, behind the ``held`` ones in the cache."""

    conversation_id: str
    done: int
    total: int
    held: int = 0


@dataclass(frozen=True)
class ConversionProgress:
    """The cache is being converted to another scheme: ``done`` of ``total`` layers."""

    conversation_id: str
    done: int
    total: int


@dataclass(frozen=True)
class Notice:
    """One line for the user: what happened and why."""

    conversation_id: str | None
    text: str
    severity: Literal["information", "warning"] = "information"


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token's log-probability.

    Attributes:
        spelling: Its text in UTF-8; one token may hold only a part of a character.
        top: The likeliest tokens in its place and their log-probabilities, the likeliest first.
        offset: Characters before it in the text that is shown.
    """

    spelling: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()
    offset: int = 0


@dataclass(frozen=True)
class TextDelta:
    """The next piece of the reply: of its reasoning, or of its answer.

    With ``takes_answer`` all pieces of the answer before this one are reasoning: only the end of the thought
    was marked. ``logprobs`` are of the tokens that begin in this piece, if the request asks for them.
    """

    conversation_id: str
    text: str
    part: Part = "answer"
    takes_answer: bool = False
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class ToolCalled:
    """The model has called a function; the call is complete, and not part of the reply's text."""

    conversation_id: str
    call: ToolCall


@dataclass(frozen=True)
class MemoryUpdate:
    """The cache's memory report. ``tokens_per_second`` is the current decode speed during a reply, ``None``
    before its first token.
    """

    conversation_id: str
    report: MemoryReport
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of one turn; ``prompt`` = ``restored`` + ``reused`` + ``prefilled``.

    Attributes:
        restored: Came from disk.
        reused: Were in the live cache.
        prefilled: Were read now.
        drafted, accepted: Proposed by a draft model or from the conversation; generated as proposed.
    """

    prompt: int
    restored: int
    reused: int
    prefilled: int
    generated: int
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Done:
    """The reply is complete. Speeds are in tokens per second, times in seconds.

    ``text`` is the answer alone. With ``takes_answer`` what a continued reply had said before is reasoning.
    """

    conversation_id: str
    text: str
    stop_reason: StopReason
    counts: TokenCounts
    prompt_tokens_per_second: float
    decode_tokens_per_second: float
    first_token_seconds: float
    scheme: str
    model: str
    report: MemoryReport
    reasoning: str = ""
    reasoning_tokens: int = 0
    reasoning_seconds: float = 0.0
    takes_answer: bool = False


@dataclass(frozen=True)
class Failed:
    """The command for this conversation failed; nothing is lost.

    Attributes:
        text: The answer up to then; ``reasoning`` likewise.
        context_full: Whether the conversation is longer than the context limit.
        refused: Whether the command itself is at fault; repeated, it would fail again.
        tokens: Tokens of a conversation that is longer than the context limit, else 0.
    """

    conversation_id: str
    message: str
    text: str = ""
    context_full: bool = False
    reasoning: str = ""
    refused: bool = False
    tokens: int = 0


@dataclass(frozen=True)
class Composed:
    """A title or summary; empty if it was interrupted."""

    conversation_id: str
    purpose: Literal["title", "summary"]
    text: str


@dataclass(frozen=True)
class Saved:
    """The conversation's cache is on disk: ``bytes`` there, for ``tokens`` tokens."""

    conversation_id: str
    tokens: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class SaveFailed:
    """The cache could not be saved (e.g. a full disk); the chat goes on and re-reads next time."""

    conversation_id: str
    message: str


@dataclass(frozen=True)
class SchemeChanged:
    """The live cache was converted (or re-read) to ``scheme``.

    ``kept_rounding``: tokens keep the rounding of an earlier scheme that is not finer than this one; the
    report tells how many, at how many bits, and how often they were rounded.
    """

    conversation_id: str
    scheme: str
    previous: str
    tokens: int
    seconds: float
    reread: bool
    kept_rounding: bool
    bytes_before: int
    bytes_after: int
    report: MemoryReport


@dataclass(frozen=True)
class RequestsUpdate:
    """Requests of other programs, and the caches kept for them.

    Attributes:
        active: Requests that are being answered.
        waiting: Requests that have not begun.
        caches: Caches in memory, those of active requests included.
        bytes: Of these caches.
        fp16_bytes: What FP16 would take.
    """

    active: int
    waiting: int
    caches: int
    bytes: int
    fp16_bytes: int


Event = (
    ModelProgress
    | ModelReady
    | ModelFailed
    | ModelEstimate
    | Opened
    | PrefillProgress
    | ConversionProgress
    | Notice
    | TextDelta
    | ToolCalled
    | MemoryUpdate
    | Done
    | Failed
    | Composed
    | Saved
    | SaveFailed
    | SchemeChanged
    | RequestsUpdate
)
