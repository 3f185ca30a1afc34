"""What another program asks of the engine: plain data, no MLX."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqchat.engine.commands import ChatMessage, Sampling, Thinking
from tqchat.engine.events import Event


@dataclass(frozen=True)
class ToolChoice:
    """Whether the reply has to call functions, where there are tools.

    Attributes:
        required: The reply begins with a call.
        name: The function that it calls; empty for any.
        at_most_one: The reply ends with its first call.
    """

    required: bool = False
    name: str = ""
    at_most_one: bool = False


@dataclass(frozen=True)
class Request:
    """A chat or a text to be continued.

    Attributes:
        messages: The chat; its last message is answered.
        prompt: Text to be continued, as it is, where there are no messages.
        tools: Definitions of functions that the model may call, as the chat template gets them.
        tool_choice: Whether it has to call them.
        scheme: Cache scheme; ``None`` for the engine's default.
        sampling: Unset values are the model's defaults.
        stops: Texts that end the reply; they are not part of it.
        thinking: Whether and how much the model reasons.
        logprobs: Number of likeliest tokens whose log-probabilities are told beside that of each token of the
            answer; ``None`` for no log-probabilities.
    """

    messages: tuple[ChatMessage, ...] = ()
    prompt: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    scheme: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    thinking: Thinking = field(default_factory=Thinking)
    logprobs: int | None = None


@dataclass(frozen=True, eq=False)
class Ticket:
    """A request that was handed in.

    Attributes:
        request: What was asked.
        receive: Called on the engine thread with each event: ``PrefillProgress``, ``TextDelta``,
            ``ToolCalled``, ``Notice``, and last ``Done`` or ``Failed``. Their ``conversation_id`` is ``id``.
        stopped: Set by ``stop``.
    """

    request: Request
    receive: Callable[[Event], None]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """End the reply within one token, or one slice of reading; from any thread."""
        self.stopped.set()
