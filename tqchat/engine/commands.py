"""What the rest of the application asks of the engine thread: plain data, no MLX."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]

STARTER = "starter"
"""The name of the bundled model."""


@dataclass(frozen=True)
class ChatMessage:
    """One turn as the chat template sees it."""

    role: Role
    content: str


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. ``None`` leaves the choice to the model's ``generation_config.json``."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int = 1024
    seed: int | None = None


def settled(sampling: Sampling, defaults: Sampling) -> Sampling:
    """``sampling`` with what it leaves open taken from the model's defaults.

    At temperature 0 the most likely token is taken: the rest of a model's recipe is for sampling and does not
    apply, unless it was asked for.
    """
    temperature = defaults.temperature if sampling.temperature is None else sampling.temperature
    if not temperature:
        return replace(sampling, temperature=0.0)
    fields = ("top_p", "top_k", "min_p", "repetition_penalty")
    chosen: dict[str, Any] = {
        name: getattr(defaults, name) if getattr(sampling, name) is None else getattr(sampling, name)
        for name in fields
    }
    return replace(sampling, temperature=temperature, **chosen)


@dataclass(frozen=True)
class Limits:
    """What a conversation's cache may take in memory, and what happens when that is not enough.

    Attributes:
        budget: Bytes; ``None`` is a share of what the weights leave.
        step_down: Whether the engine may go on under a smaller scheme by itself. If not, the reply stops.
        pack_prompts: Whether prompts are packed while they are read, even if they would fit as they are.
    """

    budget: int | None = None
    step_down: bool = False
    pack_prompts: bool = False


@dataclass(frozen=True)
class LoadModel:
    """Load a model: ``None`` for the bundled starter, a folder, or a Hugging Face repo id."""

    ref: str | None = None


@dataclass(frozen=True)
class EstimateModel:
    """Say what the model in a folder would take; ``ref`` is what the person calls it. Nothing is loaded."""

    ref: str
    folder: Path


@dataclass(frozen=True)
class OpenConversation:
    """Make a conversation current and bring its cache back, if it has one that fits."""

    conversation_id: str
    messages: tuple[ChatMessage, ...]
    scheme: str


@dataclass(frozen=True)
class Send:
    """Answer the transcript, whose last message is the user's. It is on disk already.

    With ``continues`` the last message is a reply that was cut off: go on where it ends; ``Done.text`` and
    the deltas are then only what is new.
    """

    conversation_id: str
    messages: tuple[ChatMessage, ...]
    scheme: str
    sampling: Sampling = field(default_factory=Sampling)
    continues: bool = False


@dataclass(frozen=True)
class SetScheme:
    """Convert the live cache. ``reread`` reads the transcript again instead of keeping earlier rounding."""

    conversation_id: str
    scheme: str
    reread: bool = False
    messages: tuple[ChatMessage, ...] = ()


@dataclass(frozen=True)
class Compose:
    """Write something about a conversation, beside it: its cache is left alone.

    A title gives way to whatever else is asked; a summary is waited for and can be stopped. The last message
    is cut in front if it is longer than the model reads.
    """

    conversation_id: str
    purpose: Literal["title", "summary"]
    messages: tuple[ChatMessage, ...]
    max_tokens: int


@dataclass(frozen=True)
class ForgetConversation:
    """Drop a deleted conversation's cache, in memory and on disk."""

    conversation_id: str


Command = LoadModel | EstimateModel | OpenConversation | Send | SetScheme | Compose | ForgetConversation
