"""A conversation's cache to disk and back, held against its transcript."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tqchat.engine import prompts
from tqchat.engine.commands import ChatMessage
from tqchat.engine.held import HeldTokens
from tqchat.errors import TqchatError
from tqchat.store.vault import Refused, Restored, Vault

WORTH_RECALLING = 64
"""Fewer tokens are sooner read again than brought back from disk."""


def save(held: HeldTokens, vault: Vault, conversation_id: str, interrupted: Callable[[], bool]) -> int:
    """Save what is new in a cache; the bytes that it takes on disk, 0 if the save was interrupted.

    Raises:
        VaultError: if that fails. What was saved before is then still there.
    """
    held.settle(certain=True)
    info = held.model.info
    written = vault.save(
        conversation_id,
        held.cache,
        held.tokens,
        fingerprint=info.fingerprint,
        scheme=held.scheme,
        model=info.name,
        rounding=held.rounding,
        pieces=held.pieces,
        checkpoints=held.checkpoints,
        interrupted=interrupted,
    )
    held.pieces = written.pieces
    return written.bytes if written.complete else 0


def restore(
    held: HeldTokens, vault: Vault, conversation_id: str, messages: Sequence[ChatMessage]
) -> tuple[int, str | None]:
    """Bring a conversation's cache back into ``held``, as far as it agrees with the transcript.

    Returns:
        How many tokens came back; and why not all of them, ``None`` if nothing that was said is missing.
    """
    try:
        wanted = prompts.render(held.model.tokenizer, messages, add_generation_prompt=False)
    except TqchatError:
        wanted = []  # an empty conversation, or one that sending will explain
    found = vault.load(
        conversation_id, fingerprint=held.model.info.fingerprint, scheme=held.scheme, wanted=wanted
    )
    if found is None:
        spoken = any(message.role == "assistant" for message in messages)
        return 0, _with_cost("No cache was saved for this conversation", len(wanted)) if spoken else None
    if isinstance(found, Refused):
        return 0, _with_cost(found.reason, len(wanted))
    if (reason := held.adopt(found)) is not None:
        return 0, _with_cost(reason, len(wanted))
    shared = prompts.common_prefix(held.tokens, wanted)
    if shared == len(held.tokens):
        missing = len(wanted) - shared
        return shared, _with_cost(found.damage, missing) if found.damage and missing else None
    held.rewind(shared)
    if len(held.tokens) == len(wanted):
        return shared, None  # the cache knew more than the transcript does, nothing is missing
    reason = "The saved cache and the transcript differ"
    if shared:
        reason += f" from token {shared + 1:,} on"
    return len(held.tokens), _with_cost(reason, len(wanted) - len(held.tokens))


def recall(held: HeldTokens, vault: Vault, conversation_id: str, prompt: Sequence[int]) -> None:
    """Before a prompt is read: take up the saved branch that holds more of it than the live cache can keep.

    A conversation that goes straight on never looks at the disk.
    """
    shared = prompts.common_prefix(held.tokens, prompt)
    if min(len(held.tokens), len(prompt)) - shared < WORTH_RECALLING:
        return
    fingerprint = held.model.info.fingerprint
    there = vault.reach(conversation_id, fingerprint=fingerprint, scheme=held.scheme, wanted=prompt)
    if there < held.reach(shared) + WORTH_RECALLING:
        return
    found = vault.load(conversation_id, fingerprint=fingerprint, scheme=held.scheme, wanted=prompt)
    if isinstance(found, Restored) and prompts.common_prefix(found.tokens, prompt) > held.reach(shared):
        held.adopt(found)


def _with_cost(reason: str, tokens: int) -> str:
    return f"{reason}; {tokens:,} tokens are read again with the next message."
