"""``tqchat rm``: deletes conversations, and restores them within a day."""

from __future__ import annotations

from tqchat import paths
from tqchat.commands.conversations.listing import SHORT_ID, UNTITLED
from tqchat.errors import TqchatError
from tqchat.store.database import UNDELETE_WINDOW_S, Conversation, Database, UnknownConversation
from tqchat.store.errors import StoreError
from tqchat.store.vault import Vault
from tqchat.text import one_line

_HOURS = round(UNDELETE_WINDOW_S / 3600)
_NONE = f"No conversation was deleted in the last {_HOURS} hours."


class NothingToDelete(TqchatError):
    """No conversation is named."""

    exit_code = 2


class NothingToRestore(StoreError):
    """No deleted conversation matches."""

    exit_code = 2


def remove(ids: list[str]) -> int:
    """Delete conversations, all or none, and their saved caches.

    Raises:
        NothingToDelete: if there are no ids.
        UnknownConversation: if an id matches none or several.
        ConversationInUse: if one is open in another process.
    """
    if not ids:
        raise NothingToDelete("Name the conversations to delete by their ids; `tqchat ls` lists them.")
    locations = paths.locate()
    if not locations.database.exists():
        raise UnknownConversation(ids[0])
    with Database(locations.database) as database:
        chosen = {one.id: one for one in map(database.conversation, ids)}
        for conversation_id in chosen:
            database.leases.check(conversation_id)
        for conversation_id in chosen:
            database.delete(conversation_id)
    vault = Vault(locations.caches)
    for one in chosen.values():
        print(f"{_line(one)}  (deleted)")
        try:
            vault.remove(one.id)
        except TqchatError as error:
            print(error)
    short = " ".join(one.id[:SHORT_ID] for one in chosen.values())
    it = "it" if len(chosen) == 1 else "them"
    print(f"`tqchat rm --undo {short}` restores {it} for {_HOURS} hours.")
    return 0


def restore(ids: list[str]) -> int:
    """Restore deleted conversations, the last deleted one if no ids are given.

    Raises:
        NothingToRestore: if an id matches none or several that can be restored.
    """
    file = paths.locate().database
    if not file.exists():
        raise NothingToRestore(_NONE)
    with Database(file) as database:
        deleted = database.deleted()
        # The app deletes what is left empty, and nobody wants that back.
        last = [one for one in deleted if one.head_id is not None][:1]
        chosen = [_find(deleted, one) for one in ids] or last
        if not chosen:
            raise NothingToRestore(_NONE)
        for one in chosen:
            database.undelete(one.id)
    for one in chosen:
        print(f"{_line(one)}  (restored)")
    return 0


def _find(deleted: list[Conversation], prefix: str) -> Conversation:
    found = [one for one in deleted if prefix and one.id.startswith(prefix)]
    if len(found) != 1:
        known = ", ".join(one.id[:SHORT_ID] for one in deleted[:5])
        many = "Several deleted conversations have" if found else "No deleted conversation has"
        raise NothingToRestore(f"{many} an id that starts with {prefix!r}; the last deleted: {known}.")
    return found[0]


def _line(conversation: Conversation) -> str:
    return f"{conversation.id[:SHORT_ID]}  {one_line(conversation.title) or UNTITLED}"
