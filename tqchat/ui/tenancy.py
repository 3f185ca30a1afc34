"""Which conversations this process may write: the ones it has a lease on."""

from __future__ import annotations

from collections.abc import Collection

from tqchat.store.errors import ConversationInUse, StoreError
from tqchat.store.lease import Lease, Leases


class Tenancy:
    """The leases that the chat holds, by conversation."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._held: dict[str, Lease] = {}

    def take(self, conversation_id: str) -> str | None:
        """Take a conversation for writing; if another process has it, the sentence that says so.

        Where files cannot be locked there is nobody to tell: writing then goes on without a lease.
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

    def keep_only(self, conversations: Collection[str | None]) -> None:
        """Let others have every conversation but these."""
        for conversation_id in [held for held in self._held if held not in conversations]:
            self._held.pop(conversation_id).release()
