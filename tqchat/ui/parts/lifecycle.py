"""Start, polling for outside changes, and quitting."""

from __future__ import annotations

from tqchat.errors import TqchatError
from tqchat.store.vault import Vault
from tqchat.ui.bridge import EngineStopped
from tqchat.ui.parts.engine import SAVE_TIMEOUT_S
from tqchat.ui.parts.parts import Parts
from tqchat.ui.screens.dialog import SavingDialog
from tqchat.ui.widgets.prompt.prompt import Prompt

HANG_UP_TIMEOUT_S = 1.5
"""Time for saving once the app's browser tab or terminal is gone."""
POLL_INTERVAL_S = 1.5
"""Interval of looking for changes by other processes and saving unsent text."""


def show_initial(parts: Parts) -> None:
    """Fill the mounted screen: side panels, the last conversation, problems with the settings."""
    screen, state = parts.screen, parts.preferences.state
    screen.query_one("#conversations").set_class(not state.sidebar, "folded")
    screen.query_one("#gauge").set_class(not state.gauge, "folded")
    _reopen(parts)
    if problems := parts.preferences.problems:
        more = len(problems) - 1
        others = f" {more} more in the settings, {parts.keys.label('preferences')}." if more else ""
        screen.say(f"{problems[0]}{others}", "warning")
    parts.conversations.find = lambda text: parts.attempt(parts.database.search, text) or []
    screen.draw_due()


def _reopen(parts: Parts) -> None:
    last = parts.preferences.state.conversation
    if last is not None:
        try:
            parts.chat.shown.open(last)
            parts.unsent.show()
            return
        except TqchatError:
            pass  # Deleted by another process or on the command line: a new conversation is shown.
    parts.chat.shown.new()


def start_engine(parts: Parts, model: str | None) -> None:
    """Count the caches on disk, start the engine and load a model."""
    vault = Vault(parts.paths.caches)
    parts.chat.caches.disk_bytes.update(
        (one.id, size) for one in parts.database.conversations() if (size := vault.size(one.id))
    )
    parts.screen.conversations_changed()
    try:
        engine = parts.engine.start()
    except TqchatError as error:
        parts.say(str(error), "error")
    else:
        parts.chat.connect(engine, model)


def poll(parts: Parts) -> None:
    """Load changes by other processes and editors, and save unsent text."""
    if parts.engine.stopping or not parts.screen.query(Prompt):
        return
    parts.attempt(parts.chat.shown.refresh)
    for problem in parts.appearance.reload():
        parts.say(problem, "warning")
    parts.attempt(parts.unsent.keep)


def quit(parts: Parts) -> None:
    """Save the cache in a thread, then quit; the second time, quit at once."""
    if parts.engine.stopping or not parts.engine.running:
        leave(parts)
        return
    parts.attempt(parts.unsent.keep)
    parts.host.push_screen(SavingDialog())
    _shut_down(parts, SAVE_TIMEOUT_S)


def hang_up(parts: Parts) -> None:
    """Save and quit within ``HANG_UP_TIMEOUT_S``, without a dialog: nobody sees the app any more."""
    if not parts.engine.running:
        leave(parts)
        return
    parts.attempt(parts.unsent.keep)
    if parts.engine.stopping:
        parts.host.set_timer(HANG_UP_TIMEOUT_S, lambda: leave(parts))
    else:
        _shut_down(parts, HANG_UP_TIMEOUT_S)


def _shut_down(parts: Parts, timeout: float) -> None:
    parts.engine.stopping = True

    def save() -> None:
        parts.engine.shut_down(timeout)
        # Posted after the engine's last events, so that a stopped reply is written first.
        parts.host.post_message(EngineStopped())

    parts.in_thread(save)


def leave(parts: Parts) -> None:
    """Close the conversation and end the app."""
    if parts.engine.left:
        return
    parts.engine.left = True
    parts.attempt(parts.chat.close)
    parts.remember_conversation()
    parts.database.close()
    parts.host.exit()
