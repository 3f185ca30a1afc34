"""Whether a conversation's cache fits its memory budget, and what to do where it does not."""

from __future__ import annotations

from dataclasses import dataclass

from tqchat.engine import backend
from tqchat.engine.commands import Limits
from tqchat.engine.failures import OutOfRoom
from tqchat.engine.held import HeldTokens
from tqchat.engine.memory.auto_scheme import SAFEST_FIRST
from tqchat.engine.memory.budget import SHARE_OF_AVAILABLE
from tqchat.engine.memory.shapes import at_length, cache_shapes
from tqchat.kv.memory import MemoryReport, predict_bytes
from tqchat.kv.scheme import FP16, parse_scheme

AHEAD = 1.25
"""A scheme is only gone down to if it leaves the conversation so much room to grow."""


@dataclass(frozen=True)
class Plan:
    """How to read a prompt: under another scheme (``None`` keeps the present one), packing it or not."""

    scheme: str | None
    pack_prompts: bool


class Room:
    """The memory budget of one conversation's cache."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._shapes: MemoryReport | None = None

    def budget(self, held: HeldTokens) -> int | None:
        """Bytes that the cache may take: what the person allows, else a share of what the weights leave.

        On a CPU that share is no more than what other programs leave now.
        """
        if self.limits.budget is not None:
            return self.limits.budget
        share = held.model.info.memory_budget
        if share is None or not held.model.on_cpu:
            return share
        return min(share, int(backend.available_memory() * SHARE_OF_AVAILABLE) + held.allocated_bytes)

    def plan(self, held: HeldTokens, tokens: int) -> Plan:
        """How to read on, up to ``tokens`` tokens.

        Raises:
            OutOfRoom: if they do not fit, and no smaller scheme may be taken or would be small enough.
        """
        budget = self.budget(held)
        if budget is None:
            return Plan(None, self.limits.pack_prompts)
        scheme = None
        needed = self._needs(held, held.scheme, tokens)
        if needed > budget:
            scheme = self.smaller(held, tokens)
            if scheme is None or not self.limits.step_down:
                raise OutOfRoom(tokens, held.scheme, needed, budget, scheme)
        new = tokens - len(held.tokens)
        raw = held.allocated_bytes + self._needs(held, FP16.name, tokens) * new // max(tokens, 1)
        return Plan(scheme, self.limits.pack_prompts or raw > budget)

    def exceeded(self, held: HeldTokens) -> bool:
        """Whether the cache has reached its budget."""
        budget = self.budget(held)
        return budget is not None and held.allocated_bytes > budget

    def smaller(self, held: HeldTokens, tokens: int) -> str | None:
        """The most careful scheme that takes less and leaves room to grow; ``None`` if there is none."""
        budget = self.budget(held)
        now = self._needs(held, held.scheme, tokens)
        for name in SAFEST_FIRST:
            needed = self._needs(held, name, tokens)
            if needed < now and (budget is None or needed * AHEAD <= budget):
                return name
        return None

    def _needs(self, held: HeldTokens, scheme: str, tokens: int) -> int:
        if self._shapes is None:
            self._shapes = cache_shapes(held.model.model)
        return predict_bytes(at_length(self._shapes, tokens), parse_scheme(scheme))
