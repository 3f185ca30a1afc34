"""Actions on the screen: panels, scrolling, help, stopping, quitting."""

from __future__ import annotations

from tqchat.ui.parts import lifecycle
from tqchat.ui.parts.parts import Parts
from tqchat.ui.screens.help import Help


def toggle_list(parts: Parts, argument: str) -> None:
    """Show or hide the list of conversations."""
    shown = parts.screen.toggle("#conversations")
    if not parts.screen.is_narrow:
        parts.preferences.remember_panels(sidebar=shown)


def toggle_gauge(parts: Parts, argument: str) -> None:
    """Show or hide the memory gauge."""
    shown = parts.screen.toggle("#gauge")
    if parts.screen.has_class("-wide"):
        parts.preferences.remember_panels(gauge=shown)


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


def help(parts: Parts, argument: str) -> None:
    """Show all keys and slash commands."""
    parts.host.push_screen(Help(parts.keys))


def command_palette(parts: Parts, argument: str) -> None:
    """Open the palette."""
    parts.host.action_command_palette()


def quit(parts: Parts, argument: str) -> None:
    """Save the cache and leave."""
    lifecycle.quit(parts)
