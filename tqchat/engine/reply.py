"""Progress of a reply: texts, token counts and times."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tqchat.engine.events import Done, StopReason, TokenCounts
from tqchat.kv.memory import MemoryReport


@dataclass
class Reply:
    """Counts and times of one answer, for its ``Done``; times are those of ``time.perf_counter``."""

    text: str = ""
    reasoning: str = ""
    reasoning_tokens: int = 0
    takes_answer: bool = False
    prompt: int = 0
    restored: int = 0
    reused: int = 0
    generated: int = 0
    drafted: int = 0
    accepted: int = 0
    began: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    last_thought: float = 0.0

    @property
    def prefilled(self) -> int:
        return self.prompt - self.restored - self.reused

    @property
    def reasoning_seconds(self) -> float:
        """Seconds from the first token to the end of the reasoning, 0 without any."""
        return max(0.0, self.last_thought - self.first_token) if self.reasoning_tokens else 0.0

    @property
    def prompt_speed(self) -> float:
        seconds = self.first_token - self.began
        return self.prefilled / seconds if self.first_token and seconds > 0 else 0.0

    @property
    def decode_speed(self) -> float:
        seconds = self.last_token - self.first_token
        return (self.generated - 1) / seconds if self.generated > 1 and seconds > 0 else 0.0

    def limit_reached(self, room: int, context_limit: int | None) -> StopReason | None:
        """Why the reply ends if it has as many tokens as it may."""
        if self.generated < room:
            return None
        full = context_limit is not None and self.prompt + self.generated >= context_limit
        return "context" if full else "length"

    def done(
        self, reason: StopReason, conversation_id: str, scheme: str, model: str, report: MemoryReport
    ) -> Done:
        """The event that ends the reply."""
        first = self.first_token or time.perf_counter()
        return Done(
            conversation_id=conversation_id,
            text=self.text,
            stop_reason=reason,
            counts=TokenCounts(
                prompt=self.prompt,
                restored=self.restored,
                reused=self.reused,
                prefilled=self.prefilled,
                generated=self.generated,
                drafted=self.drafted,
                accepted=self.accepted,
            ),
            prompt_tokens_per_second=self.prompt_speed,
            decode_tokens_per_second=self.decode_speed,
            first_token_seconds=first - self.began,
            scheme=scheme,
            model=model,
            report=report,
            reasoning=self.reasoning,
            reasoning_tokens=self.reasoning_tokens,
            reasoning_seconds=self.reasoning_seconds,
            takes_answer=self.takes_answer,
        )
