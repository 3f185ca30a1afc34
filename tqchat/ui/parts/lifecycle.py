"""Start, polling for outside changes, and quitting."""

from __future__ import annotations

import contextlib
import threading

from tqchat.errors import TqchatError
from tqchat.store import unsaved
from tqchat.store.vault import Vault
from tqchat.ui.bridge import EngineStopped
from tqchat.ui.parts import leftovers, updates
from tqchat.ui.parts.engine import SAVE_TIMEOUT_S
from tqchat.ui.parts.parts import Parts
from tqchat.ui.screens.dialog import SavingDialog
from tqchat.ui.widgets.conversations.order import DEFAULT_SORT, SORTS
from tqchat.ui.widgets.prompt.prompt import Prompt

POLL_INTERVAL_S = 1.5
"""Interval of looking for changes by other processes and saving unsent text."""
WRITE_TIMEOUT_S = 3.0
"""Longest wait for the database on quitting."""
SHORT_SAVE_TIMEOUT_S, SHORT_WRITE_TIMEOUT_S = 1.1, 0.2
"""Longest waits for the cache, then for the database, when a signal ends the app."""


def show_initial(parts: Parts, model: str | None) -> None:
    """Fill the mounted screen: side panels, the last conversation, problems with the settings."""
    parts.chat.models.announce(model)
    screen, state = parts.screen, parts.preferences.state
    screen.query_one("#conversations").set_class(not state.sidebar, "folded")
    screen.query_one("#gauge").set_class(not state.gauge, "folded")
    parts.conversations.sort = state.sort if state.sort in SORTS else DEFAULT_SORT
    screen.place_panels(state.sidebar_width)
    _reopen(parts)
    if problems := parts.preferences.problems:
        more = len(problems) - 1
        others = f" {more} more in the settings, {parts.keys.label('preferences')}." if more else ""
        screen.say(f"{problems[0]}{others}", "warning")
    parts.conversations.find = lambda text: parts.attempt(parts.database.search, text) or []
    screen.draw_due()


def _reopen(parts: Parts) -> None:
    parts.unsent.load()
    last = parts.preferences.state.conversation
    if last is not None:
        try:
            parts.chat.shown.open(last)
            parts.unsent.show()
            return
        except TqchatError:
            pass  # Deleted by another process or on the command line: a new conversation is shown.
    parts.chat.shown.new()
    parts.unsent.show()


def start_engine(parts: Parts, model: str | None) -> None:
    """Count the caches on disk, remove leftovers, start the engine and load a model."""
    vault = Vault(parts.paths.caches)
    known = [one.id for one in parts.database.conversations()]
    parts.chat.caches.disk_bytes.update((one, size) for one in known if (size := vault.size(one)))
    parts.in_thread(lambda: leftovers.remove(parts.paths, known))
    parts.screen.conversations_changed()
    if updates.is_due(parts.preferences):
        updates.look(lambda said: parts.host.call_later(parts.say, said))
    try:
        engine = parts.engine.start()
    except TqchatError as error:
        parts.chat.models.loading = None
        parts.say(str(error), "error")
    else:
        parts.chat.connect(engine, model)


def poll(parts: Parts) -> None:
    """Load changes by other processes and editors, attached files included, and save unsent text."""
    if parts.engine.stopping or not parts.screen.query(Prompt):
        return
    parts.attempt(parts.chat.follow_file)
    parts.attempt(parts.chat.shown.refresh)
    for problem in parts.appearance.reload():
        parts.say(problem, "warning")
    parts.attempt(parts.unsent.keep)
    parts.attachments.update(again=True)


def quit(parts: Parts) -> None:
    """Save the cache in a thread, then quit; the second time, quit at once."""
    if parts.engine.stopping or not parts.engine.running:
        leave(parts)
        return
    parts.attempt(parts.unsent.keep)
    parts.host.push_screen(SavingDialog())
    parts.engine.stopping = parts.chat.replies.closing = True

    def save() -> None:
        _stop_answering(parts)
        parts.engine.shut_down(SAVE_TIMEOUT_S)
        # Posted after the engine's last events, so that a stopped reply is written first.
        parts.host.post_message(EngineStopped(WRITE_TIMEOUT_S))

    parts.in_thread(save)


def _stop_answering(parts: Parts) -> None:
    """End the answers to other programs, without waiting for them."""
    if parts.api is not None:
        parts.api.stop(timeout_s=0.0)


def leave(parts: Parts, write_timeout_s: float = WRITE_TIMEOUT_S, code: int | None = None) -> None:
    """Close the conversation and end the app."""
    _remember(parts)
    close(parts, write_timeout_s)
    parts.host.exit(return_code=code or (1 if parts.last_words else 0))


def end_soon(parts: Parts, code: int | None) -> None:
    """End the app within two seconds: a signal was received, or a browser's tab was closed."""
    if parts.engine.stopping or not parts.engine.running:
        leave(parts, SHORT_WRITE_TIMEOUT_S, code)
        return
    _remember(parts)  # at once: the process may be ended before the engine has stopped
    parts.engine.stopping = parts.chat.replies.closing = True

    def save() -> None:
        _stop_answering(parts)
        parts.engine.shut_down(SHORT_SAVE_TIMEOUT_S)
        parts.host.post_message(EngineStopped(SHORT_WRITE_TIMEOUT_S, code))

    threading.Thread(target=save, daemon=True).start()


def save_at_once(parts: Parts) -> None:
    """Save what can be saved without the screen's thread, which does not answer."""
    if not parts.closed:
        with contextlib.suppress(Exception):
            _remember(parts)
    close(parts, 0.0)


def _remember(parts: Parts) -> None:
    """Save the unsent text and which conversation is open."""
    if parts.screen.query(Prompt):
        parts.attempt(parts.unsent.keep)
        parts.remember_conversation()


def close(parts: Parts, write_timeout_s: float = WRITE_TIMEOUT_S) -> None:
    """Write everything, and keep what cannot be written; sentences about that are printed at the end."""
    if parts.closed:
        return
    parts.closed = True  # also called by the thread that ends the process when this one hangs
    try:
        written = parts.chat.close(write_timeout_s)
    except TqchatError as error:
        parts.last_words.append(str(error))
        written = False
    if not written:
        parts.last_words += unsaved.keep_conversations(parts.database, parts.paths.state_dir)
    parts.last_words += parts.unsent.close()
    parts.database.close()


def report_writes(parts: Parts, error: Exception | None) -> None:
    """Say that the database cannot be written, or that it can again."""
    if error is None:
        parts.say("Everything is stored again.")
    else:
        parts.say(f"Not stored yet, but kept and tried again: {error}", "error")
