"""Saves a conversation's prompt cache, and restores it as far as it matches the transcript."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import ChatMessage
from tqchat.engine.sequences import common_prefix
from tqchat.store.vault import Refused, Restored, Vault

MIN_RECALL_TOKENS = 64
"""Prefilling fewer tokens is faster than loading them from disk."""


def save(cache: PromptCache, vault: Vault, conversation_id: str, interrupted: Callable[[], bool]) -> int:
    """Save the cache's new tokens. Returns its bytes on disk, 0 if interrupted.

    Raises:
        VaultError: if that fails; the previous save stays usable.
    """
    cache.settle(certain=True)
    info = cache.model.info
    written = vault.save(
        conversation_id,
        cache.cache,
        cache.tokens,
        fingerprint=info.fingerprint,
        scheme=cache.scheme,
        model=info.name,
        rounding=cache.rounding,
        pieces=cache.pieces,
        checkpoints=cache.checkpoints,
        interrupted=interrupted,
    )
    cache.pieces = written.pieces
    return written.bytes if written.complete else 0


def restore(
    cache: PromptCache,
    vault: Vault,
    conversation_id: str,
    messages: Sequence[ChatMessage],
    wanted: Sequence[int],
) -> tuple[int, str | None]:
    """Load a conversation's saved cache and trim it to the tokens it shares with the transcript.

    Args:
        wanted: The transcript's tokens; none if the template rejects it.

    Returns:
        Restored tokens, and why some are missing (``None`` if none of the transcript's are).
    """
    limit = cache.model.context_limit
    found = vault.load(
        conversation_id, fingerprint=cache.model.info.fingerprint, scheme=cache.scheme, transcript=wanted
    )
    if found is None:
        answered = any(message.role == "assistant" for message in messages)
        return 0, _with_cost(
            "No cache was saved for this conversation", len(wanted), limit
        ) if answered else None
    if isinstance(found, Refused):
        return 0, _with_cost(found.reason, len(wanted), limit)
    if (reason := cache.replace_with(found)) is not None:
        return 0, _with_cost(reason, len(wanted), limit)
    shared = common_prefix(cache.tokens, wanted)
    if shared == len(cache.tokens):
        missing = len(wanted) - shared
        return shared, _with_cost(found.damage, missing, limit) if found.damage and missing else None
    cache.trim_to(shared)
    if len(cache.tokens) == len(wanted):
        return shared, None  # the cache has more than the transcript: nothing is missing
    reason = "The saved cache and the transcript differ"
    if shared:
        reason += f" from token {shared + 1:,} on"
    return len(cache.tokens), _with_cost(reason, len(wanted) - len(cache.tokens), limit)


def recall(cache: PromptCache, vault: Vault, conversation_id: str, prompt: Sequence[int]) -> None:
    """Before a prefill: load the saved branch if it shares a longer prefix with ``prompt``.

    A prompt that merely continues the live cache causes no disk access.
    """
    shared = common_prefix(cache.tokens, prompt)
    if min(len(cache.tokens), len(prompt)) - shared < MIN_RECALL_TOKENS:
        return
    fingerprint = cache.model.info.fingerprint
    saved = vault.restorable_tokens(
        conversation_id, fingerprint=fingerprint, scheme=cache.scheme, transcript=prompt
    )
    if saved < cache.retained_tokens(shared) + MIN_RECALL_TOKENS:
        return
    found = vault.load(conversation_id, fingerprint=fingerprint, scheme=cache.scheme, transcript=prompt)
    if isinstance(found, Restored) and common_prefix(found.tokens, prompt) > cache.retained_tokens(shared):
        cache.replace_with(found)


def _with_cost(reason: str, tokens: int, limit: int | None) -> str:
    if limit is not None and tokens >= limit:
        return f"{reason}; the model reads at most {limit:,} tokens, and this conversation has more."
    return f"{reason}; {tokens:,} tokens are read again with the next message."
