"""The memory that one conversation's cache may take."""

from __future__ import annotations

CACHE_SHARE = 0.5
"""Share of the memory beside the weights that a conversation's cache may take. The rest is for attention's
temporaries, other conversations and, in unified memory, other programs."""

SHARE_OF_AVAILABLE = 0.8
"""On a CPU: share of the currently available memory that float32 weights, or a cache, may take."""

MIN_EXPECTED_TOKENS = 8192


def memory_budget(device_bytes: int, weight_bytes: int, configured: int | None = None) -> int:
    """Bytes that a conversation's cache may take: ``configured``, else a share of what the weights leave."""
    if configured is not None:
        return configured
    return int(max(0, device_bytes - weight_bytes) * CACHE_SHARE)


def weights_in_memory(file_bytes: int, float32_bytes: int, available: int, on_cpu: bool) -> int:
    """Bytes that weights take once loaded: a CPU keeps them as float32 if these fit."""
    return float32_bytes if on_cpu and float32_bytes < available * SHARE_OF_AVAILABLE else file_bytes


def expected_tokens(tokens: int, context_limit: int | None) -> int:
    """Expected length of a conversation that has ``tokens`` now: twice that, at least 8,192."""
    expected = max(MIN_EXPECTED_TOKENS, 2 * tokens)
    return expected if context_limit is None else min(expected, max(context_limit, tokens))
