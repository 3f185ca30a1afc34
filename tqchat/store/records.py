"""The database's records as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypedDict

from tqchat.store.sampling import SamplingChoice

ThinkingChoice = Literal["on", "off", "low", "medium", "high"]
THINKING_CHOICES: tuple[ThinkingChoice, ...] = ("on", "off", "low", "medium", "high")
NO_ADAPTER = "off"
"""A conversation's ``adapter`` if it wants none, whatever the settings say."""
Role = Literal["system", "user", "assistant"]
MAX_TIMESTAMP = 253_370_764_800.0
"""Unix time of the year 9999, the last that ``datetime`` supports."""
MAX_UTC_OFFSET_S = 24 * 3600
Status = Literal["complete", "unfinished", "stopped"]


@dataclass(frozen=True)
class Conversation:
    """One conversation. Times are Unix time in seconds.

    Attributes:
        scheme: The chosen cache scheme, or ``auto``.
        head_id: The last message of the shown branch.
        draft: The unsent text.
        deleted_at: When it was deleted; set while it can still be restored.
        thinking: Whether and how much the model reasons; ``None`` leaves it to the settings.
        thinking_budget: Most tokens of reasoning; ``None`` leaves it to the settings.
        adapter: Folder of its LoRA adapter, or ``NO_ADAPTER``; ``None`` leaves it to the settings.
        pinned_at: When it was pinned to the top of the list; ``None`` if it is not.
        utc_offset: Seconds of local time ahead of UTC when it was created; ``None`` if not recorded.
    """

    id: str
    title: str
    model: str | None
    scheme: str
    created_at: float
    updated_at: float
    head_id: str | None
    title_is_automatic: bool
    system_prompt: str | None = None
    sampling: SamplingChoice = field(default_factory=SamplingChoice)
    draft: str = ""
    deleted_at: float | None = None
    thinking: ThinkingChoice | None = None
    thinking_budget: int | None = None
    adapter: str | None = None
    utc_offset: int | None = None
    pinned_at: float | None = None

    @property
    def began(self) -> float:
        """The local time of its creation, in seconds since 1970-01-01 00:00 local time.

        Chat templates that write the date write this one; a later change of the machine's time zone does not
        change it. UTC for conversations without a recorded offset.
        """
        return self.created_at + (self.utc_offset or 0)


@dataclass(frozen=True)
class Message:
    """One message of the tree.

    Attributes:
        parent_id: The message before it; versions of a message have the same parent.
        status: ``unfinished`` if the process ended during the reply, ``stopped`` if the user or a limit
            stopped it.
        tokens: Tokens of this message.
        prompt_tokens: Tokens before it when it was generated.
        drafted: Tokens that a draft model or the conversation proposed.
        accepted: Proposed tokens that became part of the reply.
        cache_bytes: Cache size at the end of the reply.
        fp16_bytes: Size of an FP16 cache of the same tokens.
        reasoning: The model's reasoning before the answer.
    """

    id: str
    conversation_id: str
    parent_id: str | None
    role: Role
    content: str
    status: Status
    created_at: float
    tokens: int | None = None
    tokens_per_second: float | None = None
    first_token_seconds: float | None = None
    scheme: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    cache_bytes: int | None = None
    fp16_bytes: int | None = None
    reasoning: str | None = None
    reasoning_seconds: float | None = None


class ReplyFigures(TypedDict, total=False):
    """Measurements of one reply; see ``Message``."""

    tokens: int | None
    prompt_tokens: int | None
    tokens_per_second: float | None
    first_token_seconds: float | None
    scheme: str | None
    model: str | None
    drafted: int | None
    accepted: int | None
    cache_bytes: int | None
    fp16_bytes: int | None
    reasoning: str | None
    reasoning_seconds: float | None


class MessageChanges(ReplyFigures, total=False):
    """The fields of a message that can be updated."""

    content: str
    status: Status


@dataclass(frozen=True)
class VersionPosition:
    """A message's position among its siblings: ``index`` (from 1) of ``count``."""

    index: int
    count: int
    previous_id: str | None
    next_id: str | None


@dataclass(frozen=True)
class RemovedMessage:
    """A deleted message and what is needed to restore it.

    Attributes:
        number: Its row number, which orders messages by creation.
        children: Ids of the messages below it.
        was_head: Whether it was the last message of the shown branch.
    """

    message: Message
    number: int
    children: tuple[str, ...]
    was_head: bool


@dataclass(frozen=True)
class Totals:
    """A conversation's figures over all branches; the speed is total tokens by total decode time."""

    messages: int
    tokens: int
    tokens_per_second: float | None


@dataclass(frozen=True)
class SearchHit:
    """A search result: a message, or a title if ``message_id`` is ``None``.

    Attributes:
        snippet: One printable line around the first match.
        marks: The matches in ``snippet`` as (start, end).
    """

    conversation_id: str
    title: str
    message_id: str | None
    role: Role | None
    created_at: float
    snippet: str
    marks: tuple[tuple[int, int], ...]
