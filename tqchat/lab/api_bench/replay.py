"""The session: turns on a growing history, and a kill in the middle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqchat.lab.api_bench.servers import OutOfTime, Server

REPLY_TOKENS = 32
LIMIT_S = 600.0
"""Seconds that a server has for all its turns. After them its session ends early."""


@dataclass(frozen=True)
class Turn:
    """One reply: seconds, tokens of the prompt, those of them that were cached, and tokens generated."""

    seconds: float
    prompt: int
    cached: int
    generated: int


class Replay:
    """A session with one server.

    Attributes:
        turns: The turns so far.
        is_over: Whether its time was up before the last turn.
    """

    def __init__(self, server: Server, messages: Sequence[str]) -> None:
        """
        Args:
            messages: What the user says, turn by turn.
        """
        self.server, self.messages = server, messages
        self.turns: list[Turn] = []
        self.is_over = False
        self._history: list[dict[str, str]] = []
        self._figures: dict[str, Any] = {}

    @property
    def restart(self) -> int:
        """The number of the first turn after the server was killed."""
        return len(self.messages) // 2

    @property
    def cache_bytes(self) -> int | None:
        """Bytes of the history's cache at the end; for mlx-lm's server, of all its caches."""
        return self._figures.get("bytes") or self.server.logged_cache_bytes()

    @property
    def fp16_bytes(self) -> int | None:
        """Bytes that an FP16 cache of the history would take; ``None`` if the server does not tell."""
        return self._figures.get("fp16_bytes")

    def take_turn(self) -> Turn | None:
        """Send the next message; ``None`` if time is up.

        Raises:
            ServerFailed: if there is no proper answer.
        """
        if len(self.turns) == self.restart and self.restart:
            self.server.kill()
            self.server.start()
        self._history.append({"role": "user", "content": self.messages[len(self.turns)]})
        body = {"messages": self._history, "max_tokens": REPLY_TOKENS, "temperature": 0}
        left = LIMIT_S - sum(turn.seconds for turn in self.turns)
        began = time.perf_counter()
        try:
            answer = self.server.post("/v1/chat/completions", body, left)
        except OutOfTime:
            self.is_over = True
            self.server.kill()  # it would still be busy with this turn
            return None
        seconds = time.perf_counter() - began
        usage = answer["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        turn = Turn(seconds, usage["prompt_tokens"], cached, usage["completion_tokens"])
        self.turns.append(turn)
        self._figures = answer.get("x_tqchat") or {}
        reply = answer["choices"][0]["message"].get("content")
        self._history.append({"role": "assistant", "content": reply or "..."})
        self.server.measure()
        return turn

    def read_again(self) -> list[int]:
        """By turn: tokens that were in the history before, and were read once more."""
        return [0] + [
            max(0, now.prompt - now.cached - max(0, now.prompt - before.prompt - before.generated))
            for before, now in zip(self.turns, self.turns[1:], strict=False)
        ]
