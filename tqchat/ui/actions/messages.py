"""Actions on the message under the cursor."""

from __future__ import annotations

from collections.abc import Awaitable

from tqchat.store.database import Message
from tqchat.text import one_line
from tqchat.ui.input import attachments
from tqchat.ui.parts.parts import Parts
from tqchat.ui.screens.dialog import Confirm
from tqchat.ui.widgets.status.bars import Hints

BUSY = "Not possible during a reply: Esc stops it."
_QUOTED_CHARACTERS = 120


def is_marked(parts: Parts) -> bool:
    """Whether the cursor is on a message: the condition of these actions."""
    return parts.log.marked is not None


def marked(parts: Parts) -> Message:
    """The message under the cursor."""
    message = parts.log.marked
    assert message is not None, "actions of a message run while the cursor is on one"
    return message


def is_reply(parts: Parts) -> bool:
    """Whether the cursor is on a reply."""
    return is_marked(parts) and marked(parts).role == "assistant"


def can_unfold(parts: Parts) -> bool:
    """Whether part of the message under the cursor is folded at first."""
    return parts.log.can_unfold


def can_open(parts: Parts) -> bool:
    """Whether ``open_message`` does something."""
    return is_marked(parts) and (marked(parts).role == "user" or can_unfold(parts))


def can_go_on(parts: Parts) -> bool:
    """Whether the message under the cursor is a reply that can be continued."""
    return is_marked(parts) and parts.chat.turns.can_continue(marked(parts))


def has_versions(parts: Parts) -> bool:
    """Whether the message under the cursor has other versions."""
    return is_marked(parts) and parts.chat.tree.version(marked(parts))[1] > 1


def cursor_moved(parts: Parts, message: Message | None) -> None:
    """The cursor is on another message, or on none: show the keys that apply, or return to the prompt."""
    show_keys(parts)
    if message is None and parts.log.has_focus:
        parts.prompt.focus()


def show_keys(parts: Parts) -> None:
    """Show in the footer the keys that apply."""
    marked_now = parts.log.marked is not None
    parts.screen.query_one(Hints).for_message((lambda one: one.suits(parts)) if marked_now else None)


def cursor_up(parts: Parts, argument: str) -> None:
    """Put the cursor on the message above, at first on the last one."""
    parts.log.move_mark(-1)


def cursor_down(parts: Parts, argument: str) -> None:
    """Put the cursor on the message below; after the last one, the prompt has the focus."""
    if not parts.log.move_mark(1):
        parts.prompt.focus()


def mark_down(parts: Parts, argument: str) -> None:
    """Put the cursor on the message below."""
    parts.log.move_mark(1)


def open_message(parts: Parts, argument: str) -> None:
    """Edit a user message, unfold a reply."""
    if marked(parts).role == "user":
        branch(parts, argument)
    else:
        unfold(parts, argument)


def edit(parts: Parts, argument: str) -> None:
    """Edit the message in the prompt, as another version. A user message is answered, a reply is not."""
    _fork(parts, parts.chat.tree.edit(marked(parts)))


def branch(parts: Parts, argument: str) -> None:
    """Let the next message follow this reply, or replace this user message."""
    _fork(parts, parts.chat.tree.fork_at(marked(parts)))


def _fork(parts: Parts, text: str | None) -> None:
    if text is None:
        parts.say(BUSY, "warning")
        return
    parts.unsent.edit(text if parts.chat.tree.edits_reply else attachments.split(text)[0])
    parts.log.mark(None)
    parts.prompt.focus()


def answer(parts: Parts, argument: str) -> None:
    """Regenerate the reply to this message, or this reply."""
    if not parts.chat.turns.regenerate(marked(parts)):
        parts.say(BUSY, "warning")


def unfold(parts: Parts, argument: str) -> None:
    """Show or fold reasoning, attached files, the rest of a long text."""
    parts.log.unfold()


def delete_message(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Delete the message, after asking."""
    if not parts.chat.tree.can_change:
        parts.say(BUSY, "warning")
        return None
    return _delete(parts, marked(parts))


async def _delete(parts: Parts, message: Message) -> None:
    text = one_line(message.content or message.reasoning or "")
    shown = text if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]}…"
    question = f"“{shown}”\n\nThe messages after it stay; the model re-reads from there."
    if await parts.ask(Confirm("Delete this message?", question, "delete")):
        parts.log.mark(None)
        if parts.attempt(parts.chat.deletion.delete_message, message):
            parts.say(f"Deleted. {parts.keys.label('undelete')} restores it.")
        parts.prompt.focus()
