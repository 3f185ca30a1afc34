"""What the database holds, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypedDict

from tqchat.store.sampling import SamplingChoice

Role = Literal["system", "user", "assistant"]
Status = Literal["complete", "unfinished", "stopped"]


@dataclass(frozen=True)
class Conversation:
    """One conversation. ``head_id`` is the last message of the branch shown; times are Unix time.

    ``scheme`` is what was chosen, ``auto`` included. ``system_prompt`` stands before the first message
    without being one; ``draft`` is what was typed and not sent. ``deleted_at`` is set while a deletion can be
    undone.
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


@dataclass(frozen=True)
class Message:
    """One turn. ``parent_id`` is the message before it; replies to the same message have the same parent.

    An ``unfinished`` reply was cut by the end of its process, a ``stopped`` one was stopped by its user.
    ``tokens`` are the message's own, ``prompt_tokens`` those before it when it was generated. Of the first,
    ``accepted`` were proposed by a draft model, which proposed ``drafted``. ``cache_bytes`` is what the cache
    took at the end of the reply, ``fp16_bytes`` what FP16 would have taken then.
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


class Figures(TypedDict, total=False):
    """How a reply went."""

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


class MessageChanges(Figures, total=False):
    """What can change about a message once it is there."""

    content: str
    status: Status


@dataclass(frozen=True)
class Place:
    """Where a message stands among those with the same parent: ``index`` of ``count``, from 1."""

    index: int
    count: int
    previous_id: str | None
    next_id: str | None


@dataclass(frozen=True)
class Removed:
    """A message that was deleted, and what is needed to bring it back where it was.

    ``number`` is its place in time; ``children`` are the messages that followed it, ``heads`` whether it was
    the end of the branch that was shown.
    """

    message: Message
    number: int
    children: tuple[str, ...]
    heads: bool


@dataclass(frozen=True)
class Totals:
    """A conversation's figures, over all its branches. The speed is of all its replies together."""

    messages: int
    tokens: int
    tokens_per_second: float | None


@dataclass(frozen=True)
class SearchHit:
    """A message that was found; a title if ``message_id`` is ``None``.

    ``snippet`` is one line that is safe to show, ``marks`` the parts of it that were looked for, as pairs of
    start and end.
    """

    conversation_id: str
    title: str
    message_id: str | None
    role: Role | None
    created_at: float
    snippet: str
    marks: tuple[tuple[int, int], ...]
