"""What the database holds, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

Role = Literal["system", "user", "assistant"]
Status = Literal["complete", "unfinished", "stopped"]


@dataclass(frozen=True)
class Conversation:
    """One conversation. ``head_id`` is the last message of the branch shown; times are Unix time."""

    id: str
    title: str
    model: str | None
    scheme: str
    created_at: float
    updated_at: float
    head_id: str | None
    title_is_automatic: bool


@dataclass(frozen=True)
class Message:
    """One turn. ``parent_id`` is the message before it; replies to the same message have the same parent.

    An ``unfinished`` reply was cut by the end of its process, a ``stopped`` one was stopped by its user.
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


class MessageChanges(TypedDict, total=False):
    """What can change about a message once it is there."""

    content: str
    status: Status
    tokens: int | None
    tokens_per_second: float | None
    first_token_seconds: float | None
    scheme: str | None
    model: str | None
