"""Conversation leases of this process."""

from __future__ import annotations

from collections.abc import Callable, Collection

from tqchat.store.errors import ConversationInUse, StoreError
from tqchat.store.lease import Lease, Leases


class ConversationLeases:
    """Acquires a lease per conversation, and releases those that are no longer in use.

    ``in_use`` returns the ids of the conversations that are shown, queued or worked on.
    """

    def __init__(self, leases: Leases, in_use: Callable[[], Collection[str | None]]) -> None:
        self._leases, self._in_use = leases, in_use
        self._held: dict[str, Lease] = {}

    def acquire(self, conversation_id: str) -> str | None:
        """Acquire a lease; the error message if another process holds it.

        On a file system without locks the conversation is written without a lease.
        """
        if conversation_id in self._held:
            return None
        try:
            self._held[conversation_id] = self._leases.acquire(conversation_id)
        except ConversationInUse as error:
            return str(error)
        except StoreError:
            pass
        return None

    def release_unused(self) -> None:
        """Release the leases of conversations that are not in use."""
        self._release_all_but(self._in_use())

    def release_all(self) -> None:
        """Release every lease."""
        self._release_all_but(())

    def _release_all_but(self, kept: Collection[str | None]) -> None:
        for conversation_id in [held for held in self._held if held not in kept]:
            self._held.pop(conversation_id).release()
