"""Commands to the engine thread: plain data, no MLX."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from tqchat.store.records import NO_ADAPTER as NO_ADAPTER
from tqchat.store.records import THINKING_CHOICES as THINKING_CHOICES
from tqchat.store.records import ThinkingChoice as ThinkingChoice

Role = Literal["system", "user", "assistant", "tool"]
Part = Literal["reasoning", "answer"]
"""The two parts of a reply."""


STARTER = "SmolLM2-135M-Instruct"
"""The name of the bundled model."""

_FORMER_NAME = "starter"
"""Name of the bundled model in settings and conversations of earlier versions."""


def model_ref(ref: str | None) -> str:
    """The name that a model is known by: ``None`` and a former name stand for the bundled model."""
    return STARTER if ref is None or ref == _FORMER_NAME else ref


@dataclass(frozen=True)
class Drafting:
    """Source of drafted tokens.

    Attributes:
        model: Name of the draft model; ``None`` for none.
        lookup: Whether proposals are looked up in the conversation.
        is_asked_for: Whether the user chose it. If not, a model that nothing can be proposed to is no news.
    """

    model: str | None = None
    lookup: bool = True
    is_asked_for: bool = False


_DRAFTING = {
    None: Drafting(),
    "auto": Drafting(),
    "prompt": Drafting(is_asked_for=True),
    "none": Drafting(lookup=False),
}


def drafting_of(setting: str | None) -> Drafting:
    """Meaning of the setting ``draft``: ``auto``, ``prompt``, ``none``, or a draft model's name."""
    return _DRAFTING.get(setting) or Drafting(setting, lookup=False, is_asked_for=True)


@dataclass(frozen=True)
class ToolCall:
    """A call of a function by the model.

    Attributes:
        id: Names the call, so that a result can refer to it.
        arguments: A JSON object, as text.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ChatMessage:
    """A message as the chat template gets it.

    Attributes:
        reasoning: Precedes a reply, without its marks.
        tool_calls: Calls that a reply makes.
        tool_call_id: The call whose result a message of the role ``tool`` is.
        name: The function of that call.
    """

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. ``None`` takes the model's default (``generation_config.json``)."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    max_tokens: int = 1024
    seed: int | None = None


@dataclass(frozen=True)
class Thinking:
    """Whether and how much a model reasons before it answers. ``None`` leaves it to the model.

    Attributes:
        choice: What the model's chat template is told.
        budget: Tokens of reasoning after which the answer is made to begin.
    """

    choice: ThinkingChoice | None = None
    budget: int | None = None


_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
_DEFAULTED = tuple(
    field.name for field in fields(Sampling) if field.name not in ("temperature", "max_tokens", "seed")
)


def resolve_sampling(sampling: Sampling, defaults: Sampling) -> Sampling:
    """``sampling`` with the model's ``defaults`` for parameters that are ``None``.

    At temperature 0 decoding is greedy. Of the other defaults only the penalties of a model that is greedy by
    itself apply then: who asks for temperature 0 gets the most likely token.
    """
    temperature = defaults.temperature if sampling.temperature is None else sampling.temperature
    if not temperature and sampling.temperature is not None:
        return sampling
    names = _DEFAULTED if temperature else _PENALTIES
    chosen: dict[str, Any] = {
        name: getattr(defaults, name) for name in names if getattr(sampling, name) is None
    }
    return replace(sampling, temperature=temperature or 0.0, **chosen)


@dataclass(frozen=True)
class Limits:
    """Memory limits of a conversation's cache.

    Attributes:
        budget: Memory budget in bytes; ``None`` is a share of what the weights leave.
        step_down: Whether a full cache is converted to a smaller scheme. If not, the reply stops.
        pack_prompts: Whether prompts are packed during prefill even if they fit at 16 bits.
    """

    budget: int | None = None
    step_down: bool = False
    pack_prompts: bool = False


@dataclass(frozen=True)
class LoadModel:
    """Load a model: ``None`` for the bundled model, a folder, or a Hugging Face repo id."""

    ref: str | None = None


@dataclass(frozen=True)
class EstimateModel:
    """Estimate the memory of the model in a folder without loading it; ``ref`` is its name on screen."""

    ref: str
    folder: Path


@dataclass(frozen=True)
class OpenConversation:
    """Make a conversation current and restore its saved cache, if that matches.

    ``began`` is the time that the chat template's clock shows: when the conversation began, in seconds of a
    wall clock since 1970-01-01, without a time zone. ``None``: when the engine first opens the conversation.
    ``adapter`` is the folder of the LoRA adapter to use, or ``NO_ADAPTER``; ``None`` is the engine's default.
    """

    conversation_id: str
    messages: tuple[ChatMessage, ...]
    scheme: str
    began: float | None = None
    thinking: Thinking = field(default_factory=Thinking)
    adapter: str | None = None


@dataclass(frozen=True)
class Send:
    """Answer the transcript, whose last message is the user's and is committed already.

    With ``continues`` the last message is an unfinished reply to be continued; ``Done.text``,
    ``Done.reasoning`` and the deltas are then only the new text.
    """

    conversation_id: str
    messages: tuple[ChatMessage, ...]
    scheme: str
    sampling: Sampling = field(default_factory=Sampling)
    continues: bool = False
    began: float | None = None
    thinking: Thinking = field(default_factory=Thinking)
    adapter: str | None = None


@dataclass(frozen=True)
class SetScheme:
    """Convert the live cache. ``reread`` prefills the transcript again, without earlier rounding errors."""

    conversation_id: str
    scheme: str
    reread: bool = False
    messages: tuple[ChatMessage, ...] = ()
    began: float | None = None
    thinking: Thinking = field(default_factory=Thinking)
    adapter: str | None = None


@dataclass(frozen=True)
class Compose:
    """Generate a title or summary with a cache of its own.

    A title is interrupted by any other command; a summary only by a stop. The beginning of the last message
    is cut off if the prompt exceeds the context limit.
    """

    conversation_id: str
    purpose: Literal["title", "summary"]
    messages: tuple[ChatMessage, ...]
    max_tokens: int
    began: float | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class ForgetConversation:
    """Delete a conversation's cache, in memory and on disk.

    ``withdrawn``: Its only message went back into the prompt. What was read of it stays in memory for the
    next message, if that begins a conversation.
    """

    conversation_id: str
    withdrawn: bool = False


@dataclass(frozen=True)
class WarmUp:
    """Compile the kernels of a reply under this scheme, if need be: on CUDA, once per machine and model."""

    scheme: str


@dataclass(frozen=True)
class ForgetMessages:
    """Delete what a conversation's cache holds of messages that were deleted, in memory and on disk.

    ``messages``: The transcript without them.
    """

    conversation_id: str
    messages: tuple[ChatMessage, ...]


Command = (
    LoadModel
    | EstimateModel
    | OpenConversation
    | Send
    | SetScheme
    | Compose
    | ForgetConversation
    | ForgetMessages
    | WarmUp
)
