"""Regenerating, continuing, and stepping through the versions of a message."""

from __future__ import annotations

from tqchat.store.database import Message
from tqchat.ui.actions.messages import BUSY
from tqchat.ui.parts.parts import Parts


def regenerate(parts: Parts, argument: str) -> None:
    """Regenerate the last reply."""
    if not parts.chat.turns.regenerate():
        parts.say("There is nothing to regenerate now.")


def continue_reply(parts: Parts, argument: str) -> None:
    """Continue a reply that was cut off."""
    if not parts.chat.turns.continue_reply():
        parts.say("Only the last reply can be continued, and only if it was cut off.")


def previous_version(parts: Parts, argument: str) -> None:
    """Show the previous version of the marked message, or of the last one that has several."""
    _step(parts, -1)


def next_version(parts: Parts, argument: str) -> None:
    """Show the next version."""
    _step(parts, 1)


def _step(parts: Parts, step: int) -> None:
    marked = parts.log.marked
    target: Message | None = marked or parts.chat.tree.latest_with_versions()
    if target is None:
        parts.say("Nothing here has another version yet.")
        return
    reached = parts.chat.tree.step_version(target.id, step)
    if reached is None:
        version, versions = parts.chat.tree.version(target)
        parts.say(f"This is version {version} of {versions}." if parts.chat.tree.can_change else BUSY)
    elif marked is not None:
        parts.host.call_after_refresh(parts.log.mark, reached.id)
