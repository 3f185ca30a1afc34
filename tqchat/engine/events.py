"""What the engine thread tells the rest of the application: plain data, no MLX."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tqchat.engine.commands import Sampling
from tqchat.kv.memory import MemoryReport

StopReason = Literal["stop", "length", "stopped", "context", "memory"]


@dataclass(frozen=True)
class ModelInfo:
    """A loaded model, as far as people and screens care.

    ``weight_bytes`` is what the live weights take; ``context_limit`` is in tokens, ``None`` if the model
    states none. ``memory_budget`` is how many bytes a conversation's cache may take, ``None`` if unknown;
    ``shapes`` a report on a cache that holds one token: what every layer keeps for it. ``sampling`` is how
    the model likes to be sampled."""

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


@dataclass(frozen=True)
class ModelProgress:
    """A model is on its way. ``stage`` is what is going on; bytes where they are known."""

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
    """The model could not be had; the one before it, if any, is still current."""

    ref: str
    message: str


@dataclass(frozen=True)
class ModelEstimate:
    """What a model would take on this machine, before it is loaded; or, in ``problem``, why it cannot be.

    ``weight_bytes`` as the weights would be kept here; ``shapes`` is a report on a cache that holds one
    token; ``memory_budget`` what a conversation's cache could take beside the weights.
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

    ``restored`` tokens came back from disk; ``reason`` says why not all of them did.
    """

    conversation_id: str
    restored: int
    seconds: float
    reason: str | None = None


@dataclass(frozen=True)
class PrefillProgress:
    """The prompt is being read: ``done`` of ``total`` new tokens."""

    conversation_id: str
    done: int
    total: int


@dataclass(frozen=True)
class ConversionProgress:
    """The cache is being put under another scheme: ``done`` of ``total`` layers."""

    conversation_id: str
    done: int
    total: int


@dataclass(frozen=True)
class Notice:
    """One line that the person should see: what happened and why."""

    conversation_id: str | None
    text: str
    severity: Literal["information", "warning"] = "information"


@dataclass(frozen=True)
class TextDelta:
    """The next piece of the reply."""

    conversation_id: str
    text: str


@dataclass(frozen=True)
class MemoryUpdate:
    """What the cache takes now. ``tokens_per_second`` is the running decode speed, when there is one."""

    conversation_id: str
    report: MemoryReport
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class TokenCounts:
    """Where the prompt's tokens came from: ``prompt`` = ``restored`` + ``reused`` + ``prefilled``.

    ``restored`` came from disk in this process's first turn, ``reused`` were in the live cache, ``prefilled``
    were read now. Of the generated ones ``accepted`` were proposed by a draft model, which proposed
    ``drafted``."""

    prompt: int
    restored: int
    reused: int
    prefilled: int
    generated: int
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Done:
    """The reply is complete. Speeds are in tokens per second, times in seconds."""

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


@dataclass(frozen=True)
class Failed:
    """The command for this conversation failed; nothing is lost. ``text`` is what had been said by then.

    ``context_full`` if the conversation is longer than the model reads.
    """

    conversation_id: str
    message: str
    text: str = ""
    context_full: bool = False


@dataclass(frozen=True)
class Composed:
    """What was written about a conversation; empty if it gave way or was stopped."""

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
    """The cache could not be saved (a full disk, say); the chat goes on and will re-read next time."""

    conversation_id: str
    message: str


@dataclass(frozen=True)
class SchemeChanged:
    """The live cache was converted (or re-read) to ``scheme``.

    ``kept_rounding`` is true if history went to a finer scheme and still carries the coarser one's rounding.
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
    | MemoryUpdate
    | Done
    | Failed
    | Composed
    | Saved
    | SaveFailed
    | SchemeChanged
)
