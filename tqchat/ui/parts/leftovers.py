"""Files of killed processes and of deleted conversations, removed at the start."""

from __future__ import annotations

from collections.abc import Collection

from tqchat.files import remove_leftovers, remove_temporary_folders, temporary_prefix
from tqchat.paths import Paths
from tqchat.store.errors import StoreError
from tqchat.store.lease import Leases
from tqchat.store.vault import Vault


def remove(paths: Paths, known: Collection[str]) -> None:
    """Remove what nobody needs any more; ``known`` are the ids of all conversations. Runs in a thread."""
    for file in (paths.state_file, paths.unsent_text, paths.presets):
        remove_leftovers(file.parent, temporary_prefix(file))
    remove_temporary_folders()
    leases, vault = Leases(paths.database), Vault(paths.caches)
    leases.remove_dead()
    vault.remove_leftovers()
    if known:
        # A conversation that another tqchat has begun since may not be known here.
        new = [one.conversation for one in vault.entries() if _is_held(leases, one.conversation)]
        vault.remove_orphans({*known, *new})


def _is_held(leases: Leases, conversation_id: str) -> bool:
    try:
        return leases.holder_pid(conversation_id) is not None
    except StoreError:
        return True  # not a conversation's folder
