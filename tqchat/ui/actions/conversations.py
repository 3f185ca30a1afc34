"""Actions on conversations: new, open, step, rename, delete, restore, search."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tqchat.store.database import Conversation
from tqchat.store.search import query_words
from tqchat.text import one_line
from tqchat.ui.actions.registry import Refused
from tqchat.ui.actions.screen import toggle_list
from tqchat.ui.parts.parts import Parts
from tqchat.ui.screens.dialog import Ask, Confirm
from tqchat.ui.widgets.conversations.list import ConversationList
from tqchat.ui.widgets.conversations.order import SORTS, grouped


def new(parts: Parts, argument: str) -> None:
    """Show a new, empty conversation."""
    _switch(parts, parts.chat.shown.new)
    parts.screen.close_overlays()
    parts.prompt.focus()


def previous(parts: Parts, argument: str) -> None:
    """Open the conversation above in the list."""
    _step(parts, -1)


def following(parts: Parts, argument: str) -> None:
    """Open the conversation below in the list."""
    _step(parts, 1)


def open_found(parts: Parts, chosen: ConversationList.Chosen) -> None:
    """Open a conversation chosen in the list, at the message that a search found."""
    _switch(parts, parts.chat.shown.open, chosen.conversation_id)
    parts.screen.close_overlays()
    parts.prompt.focus()
    if chosen.message_id is not None:
        parts.attempt(parts.chat.tree.show_message, chosen.message_id)
        parts.log.reveal(chosen.message_id, query_words(chosen.query))


def rename(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Give the conversation the title of the argument, else ask for one."""
    conversation = parts.chat.shown.conversation
    if conversation is None:
        parts.say("A conversation has a title from its first message on.")
        return None
    if argument:
        parts.chat.shown.rename(one_line(argument))
        return None
    return _ask_title(parts, conversation)


async def _ask_title(parts: Parts, conversation: Conversation) -> None:
    title = await parts.ask(Ask("Title", one_line(conversation.title)))
    if title:
        parts.chat.shown.rename(one_line(title))


def delete(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Delete the conversation under the list's cursor while the list has the focus, else the open one."""
    conversation = parts.conversations.marked or parts.chat.shown.conversation
    return _delete(parts, conversation) if conversation else None


async def _delete(parts: Parts, conversation: Conversation) -> None:
    title = one_line(conversation.title)
    question = f"“{title}”: its cache is deleted now; its messages can be restored for 24 hours."
    if not await parts.ask(Confirm("Delete this conversation?", question, "delete")):
        return
    parts.attempt(parts.unsent.keep)
    shown = parts.chat.shown.conversation is not None and parts.chat.shown.conversation.id == conversation.id
    parts.chat.deletion.delete(conversation.id)
    if shown:
        parts.unsent.show()
    parts.say(f"Deleted “{title}”. {parts.keys.label('undelete')} restores it.")


def undelete(parts: Parts, argument: str) -> None:
    """Restore the message or conversation that was deleted last."""
    parts.attempt(parts.unsent.keep)
    if parts.attempt(parts.chat.deletion.undo) is False:
        parts.say("There is no deletion of the last 24 hours to undo.")
    parts.unsent.show()


def pin(parts: Parts, argument: str) -> None:
    """Pin the conversation under the list's cursor, else the open one, to the top; or no longer."""
    conversation = parts.conversations.marked or parts.chat.shown.conversation
    if conversation is None:
        parts.say("A conversation can be pinned from its first message on.")
        return
    pinned = conversation.pinned_at is None
    parts.database.set_pinned(conversation.id, pinned)
    parts.chat.shown.reread()
    parts.screen.conversations_changed()
    title = one_line(conversation.title)
    parts.say(f"“{title}” is pinned to the top of the list." if pinned else f"“{title}” is no longer pinned.")


def sort(parts: Parts, argument: str) -> None:
    """Sort the list as the argument says, else in the next way."""
    names = list(SORTS)
    if argument and argument not in names:
        raise Refused(f"The list can be sorted by {', '.join(names[:-1])} or {names[-1]}.")
    listed = parts.conversations
    listed.sort = argument or names[(names.index(listed.sort) + 1) % len(names)]
    parts.preferences.remember_panels(sort=listed.sort)
    parts.screen.conversations_changed()
    parts.say(f"The list shows {SORTS[listed.sort]}.")


def sorts(parts: Parts) -> list[tuple[str, str]]:
    """The ways to sort the list."""
    return [(name, f"The list shows {how}.") for name, how in SORTS.items()]


def search(parts: Parts, argument: str) -> None:
    """Show the list filtered by words, or with its filter ready for typing."""
    found = parts.conversations
    if not found.is_on_screen or not found.display or found.has_class("folded"):
        toggle_list(parts, "")
    found.search_for(argument)


def _step(parts: Parts, step: int) -> None:
    found = parts.conversations
    sizes = parts.screen.cache_sizes
    groups = grouped(parts.database.conversations(), found.sort, sizes)
    ids = [one.id for _, members in groups for one in members]
    current = parts.chat.shown.conversation
    index = ids.index(current.id) + step if current and current.id in ids else 0
    if 0 <= index < len(ids):
        _switch(parts, parts.chat.shown.open, ids[index])
    elif index < 0:
        _switch(parts, parts.chat.shown.new)


def _switch(parts: Parts, show: Callable[..., None], *arguments: object) -> None:
    """Show another conversation; unsent text is kept with the previous one."""
    parts.attempt(parts.unsent.keep)
    parts.attempt(show, *arguments)
    parts.unsent.show()
    parts.remember_conversation()
