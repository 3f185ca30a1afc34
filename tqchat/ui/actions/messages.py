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


def cursor_moved(parts: Parts, message: Message | None) -> None:
    """The cursor is on another message, or on none: show its keys, or return to the prompt."""
    parts.screen.query_one(Hints).for_message(message is not None)
    if message is None and parts.log.has_focus:
        parts.prompt.focus()


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
    """Edit a user message in the prompt; sending it makes another version."""
    if marked(parts).role == "user":
        branch(parts, argument)
    else:
        parts.say("Only your own messages can be edited; r regenerates this reply.")


def branch(parts: Parts, argument: str) -> None:
    """Let the next message follow this reply, or replace this user message."""
    text = parts.chat.tree.fork_at(marked(parts))
    if text is None:
        parts.say(BUSY, "warning")
        return
    parts.unsent.edit(attachments.split(text)[0])
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
