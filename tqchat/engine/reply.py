"""Progress of a reply: texts, token counts and times."""

from __future__ import annotations

from dataclasses import dataclass


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
