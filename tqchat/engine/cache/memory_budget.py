"""Keeps a conversation's cache within its memory budget: packs prompts, picks a smaller scheme or refuses."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tqchat.engine import backend
from tqchat.engine.cache.prompt_cache import PromptCache, checkpoints_kept
from tqchat.engine.commands import Limits
from tqchat.engine.failures import OverMemoryBudget
from tqchat.engine.memory.auto_scheme import SAFEST_FIRST
from tqchat.engine.memory.budget import SHARE_OF_AVAILABLE
from tqchat.engine.memory.shapes import at_length, cache_shapes
from tqchat.kv.checkpoint import layers_copied
from tqchat.kv.memory import MemoryReport, predict_bytes
from tqchat.kv.scheme import FP16, parse_scheme
from tqchat.kv.storage.write_behind import waiting_bytes

GROWTH_FACTOR = 1.25
"""A smaller scheme is only chosen if the cache could grow by this factor within the budget."""


@dataclass(frozen=True)
class PrefillPlan:
    """The scheme to prefill under (``None`` keeps the current one), and whether to pack during prefill."""

    scheme: str | None
    pack_prompts: bool


class MemoryBudget:
    """The memory budget of one conversation's cache."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._shapes: MemoryReport | None = None

    def budget_bytes(self, cache: PromptCache) -> int | None:
        """Bytes that the cache may take: as configured, else a share of what the weights leave.

        On a CPU that share is limited by the memory available now.
        """
        if self.limits.budget is not None:
            return self.limits.budget
        share = cache.model.info.memory_budget
        if share is None or not cache.model.on_cpu:
            return share
        return min(share, int(backend.available_memory() * SHARE_OF_AVAILABLE) + cache.allocated_bytes)

    def plan(self, cache: PromptCache, tokens: int) -> PrefillPlan:
        """Plan for a prefill of up to ``tokens`` tokens.

        Raises:
            OverMemoryBudget: if they do not fit and no smaller scheme is allowed or small enough.
        """
        budget = self.budget_bytes(cache)
        if budget is None:
            return PrefillPlan(None, self.limits.pack_prompts)
        scheme = None
        needed = self.predicted_bytes(cache, cache.scheme, tokens)
        if needed > budget:
            scheme = self.smaller_scheme(cache, tokens)
            if scheme is None or not self.limits.step_down:
                raise OverMemoryBudget(tokens, cache.scheme, needed, budget, scheme)
        new = tokens - len(cache.tokens)
        raw = cache.allocated_bytes + self.predicted_bytes(cache, FP16.name, tokens) * new // max(tokens, 1)
        return PrefillPlan(scheme, self.limits.pack_prompts or raw > budget)

    def scheme_to_convert_to(self, cache: PromptCache, scheme: str) -> str:
        """The scheme that a conversion to ``scheme`` leads to: a smaller one if that would not fit.

        Raises:
            OverMemoryBudget: if it would not fit and no smaller scheme is allowed or small enough.
        """
        tokens, budget = len(cache.tokens), self.budget_bytes(cache)
        needed = self.predicted_bytes(cache, scheme, tokens)
        if budget is None or needed <= max(budget, self.predicted_bytes(cache, cache.scheme, tokens)):
            return scheme
        smaller = self._safest(cache, tokens, needed)
        if smaller == cache.scheme:
            raise OverMemoryBudget(tokens, scheme, needed, budget, None)
        if smaller is None or not self.limits.step_down:
            raise OverMemoryBudget(tokens, scheme, needed, budget, smaller)
        return smaller

    def spare_bytes(self, cache: PromptCache, scheme: str) -> int:
        """Bytes of the budget that a conversion to ``scheme`` does not need."""
        budget = self.budget_bytes(cache)
        if budget is None:
            return 0
        converted = self.predicted_bytes(cache, scheme, len(cache.tokens))
        return max(0, budget - max(cache.allocated_bytes, converted) - waiting_bytes())

    def exceeded(self, cache: PromptCache) -> bool:
        """Whether the cache is larger than its budget."""
        budget = self.budget_bytes(cache)
        return budget is not None and cache.allocated_bytes > budget

    def smaller_scheme(self, cache: PromptCache, tokens: int) -> str | None:
        """The safest scheme that is smaller and leaves room to grow; ``None`` if there is none."""
        return self._safest(cache, tokens, self.predicted_bytes(cache, cache.scheme, tokens))

    def _safest(self, cache: PromptCache, tokens: int, below: int) -> str | None:
        """The safest scheme that takes less than ``below`` bytes and leaves room to grow."""
        budget = self.budget_bytes(cache)
        for name in SAFEST_FIRST:
            needed = self.predicted_bytes(cache, name, tokens)
            if needed < below and (budget is None or needed * GROWTH_FACTOR <= budget):
                return name
        return None

    def predicted_bytes(self, cache: PromptCache, scheme: str, tokens: int) -> int:
        """Bytes that the cache would take at this length under this scheme."""
        if self._shapes is None:
            draft = None if cache.draft is None else cache_shapes(cache.draft.model.model)
            self._shapes = replace(cache_shapes(cache.model.model), draft=draft)
        report, under = at_length(self._shapes, tokens), parse_scheme(scheme)
        checkpoints = [one.report for one in cache.checkpoints]
        if tokens > len(cache.tokens) and (copied := layers_copied(cache.cache)):
            # One is taken behind the prompt, and may take the place of older ones.
            checkpoints.append(tuple(report.layers[index] for index in copied))
            sizes = [predict_bytes(replace(report, layers=one, draft=None), under) for one in checkpoints]
            kept = checkpoints_kept(sizes, predict_bytes(replace(report, draft=None), under))
            checkpoints = checkpoints[-kept:]
        return predict_bytes(replace(report, checkpoints=tuple(checkpoints)), under)
