"""Actions on the screen: panels, scrolling, help, stopping, quitting."""

from __future__ import annotations

import time
from collections.abc import Awaitable

from tqchat.ui.actions.keys import key_label
from tqchat.ui.parts import lifecycle
from tqchat.ui.parts.parts import Parts
from tqchat.ui.screens.dialog import Confirm
from tqchat.ui.screens.help import Help
from tqchat.ui.widgets.fields import LineField, TextField

QUIT_WITHIN_S = 2.0
LIST_STEP = 4


def toggle_list(parts: Parts, argument: str) -> None:
    """Show or hide the list of conversations."""
    shown = parts.screen.toggle("#conversations")
    if not parts.screen.is_narrow:
        parts.preferences.remember_panels(sidebar=shown)


def toggle_gauge(parts: Parts, argument: str) -> None:
    """Show or hide the memory gauge."""
    shown = parts.screen.toggle("#gauge")
    if parts.screen.has_gauge_beside:
        parts.preferences.remember_panels(gauge=shown)


def widen_list(parts: Parts, argument: str) -> None:
    """Make the list of conversations wider."""
    resize_list(parts, parts.preferences.state.sidebar_width + LIST_STEP)


def narrow_list(parts: Parts, argument: str) -> None:
    """Make the list of conversations narrower."""
    resize_list(parts, parts.preferences.state.sidebar_width - LIST_STEP)


def resize_list(parts: Parts, width: int) -> None:
    """Set the width of the list of conversations, within bounds."""
    parts.preferences.remember_panels(sidebar_width=parts.conversations.resize(width))
    parts.screen.place_panels()


def page_up(parts: Parts, argument: str) -> None:
    """Scroll the conversation one page up."""
    parts.log.scroll_page_up(animate=False)


def page_down(parts: Parts, argument: str) -> None:
    """Scroll the conversation one page down."""
    parts.log.scroll_page_down(animate=False)


def stop(parts: Parts, argument: str) -> None:
    """Close an overlay, else stop the reply or the download, else return to the prompt."""
    if parts.screen.selections:
        parts.screen.clear_selection()
        parts.screen.clear_notice()
        return
    if parts.screen.close_overlays() or parts.completion.close():
        return
    if parts.log.marked is not None:
        parts.log.mark(None)
    elif not parts.attempt(parts.chat.turns.stop) and not parts.unsent.leave_edit():
        parts.screen.clear_notice()
        parts.prompt.focus()


def toggle_mouse(parts: Parts, argument: str) -> None:
    """Leave the mouse to the terminal, or take it back."""
    wanted = not parts.settings.mouse
    parts.preferences.set("mouse", wanted)
    key = parts.keys.label("mouse")
    if wanted:
        parts.say("tqchat has the mouse again: clicks work, and text that you select is copied as written.")
    else:
        parts.say(f"The terminal has the mouse: select as in any other program. {key} takes it back.")


def nothing_to_cut(parts: Parts) -> bool:
    """Whether no text is selected in the focused field."""
    field = parts.host.focused
    return not (isinstance(field, LineField | TextField) and field.selected_text)


def nothing_to_copy(parts: Parts) -> bool:
    """Whether no text is selected, neither in the focused field nor with the mouse."""
    return nothing_to_cut(parts) and not parts.host.screen.get_selected_text()


def interrupt(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Stop the reply; with nothing to stop, clear the input; with nothing to clear, offer to quit.

    The offer is made at the second key press within ``QUIT_WITHIN_S``.
    """
    if parts.attempt(parts.chat.turns.stop):
        return None
    key, before = parts.keys.label("interrupt"), parts.interrupted_at
    parts.interrupted_at = time.monotonic()
    field = parts.host.focused
    if isinstance(field, LineField) and field.value:
        field.value = ""
    elif parts.prompt.text:
        parts.prompt.clear()
        parts.say(f"Cleared; {key_label('ctrl+z')} brings it back. {key} again offers to quit.")
    elif parts.interrupted_at - before <= QUIT_WITHIN_S:
        return _offer_to_quit(parts)
    else:
        parts.say(f"{key} again offers to quit.")
    return None


async def _offer_to_quit(parts: Parts) -> None:
    question = "Messages and the cache are saved first."
    if await parts.ask(Confirm("Quit tqchat?", question, "quit", "stay", also="enter,ctrl+c")):
        lifecycle.quit(parts)


def show_alt_keys(parts: Parts, shown: bool) -> None:
    """Show or hide the keys that follow the prefix key."""
    if not shown:
        parts.screen.clear_notice()
        return
    found = [
        f"{key_label(key.removeprefix('alt+'))} {action.title.lower()}"
        for action in parts.keys.actions.scoped("app")
        for key in parts.keys.of(action.name)
        if key.startswith("alt+")
    ]
    parts.say(f"{parts.keys.label('alt_prefix')} and: {', '.join(found)}.")


def alt_prefix(parts: Parts, argument: str) -> None:
    """Show the keys that follow the prefix key."""
    show_alt_keys(parts, True)


def help(parts: Parts, argument: str) -> None:
    """Show all keys and slash commands."""
    parts.host.push_screen(Help(parts.keys))


def command_palette(parts: Parts, argument: str) -> None:
    """Open the palette."""
    parts.host.action_command_palette()


def quit(parts: Parts, argument: str) -> None:
    """Save the cache and leave."""
    lifecycle.quit(parts)
