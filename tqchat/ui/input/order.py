"""The order of keys and pastes, which Textual hands to widgets without waiting for what earlier ones do."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from textual.app import App
from textual.events import Key, Paste
from textual.message import Message
from textual.timer import Timer

from tqchat.ui.widgets.fields import LineField, TextField

LIMIT_S = 5.0
"""Input waits no longer than this for earlier keys: their widget may be gone."""


class KeysHandled(Message):
    """Comes back to the app when the keys before it have passed all widgets that are not closed meanwhile."""


class InputOrder:
    """Holds keys and pastes back until the app is ready, and until the keys before them are handled where one
    of these may have moved the focus or closed a dialog: any but text for a text field.

    Args:
        deliver: Hands an event to Textual.
    """

    def __init__(self, app: App[None], deliver: Callable[[Key | Paste], Awaitable[None]]) -> None:
        self._app, self._deliver = app, deliver
        self._held: deque[Key | Paste] = deque()
        self._is_holding = True
        self._may_move_focus = False
        self._limit: Timer | None = None

    async def take(self, event: Key | Paste) -> None:
        """Deliver an event behind those that are held."""
        self._held.append(event)
        await self._deliver_held()

    async def release(self) -> None:
        """Wait no longer before the first event that is held."""
        self._is_holding = self._may_move_focus = False
        if self._limit is not None:
            self._limit.stop()
        await self._deliver_held()

    async def _deliver_held(self) -> None:
        while self._held and not self._is_holding:
            if self._may_move_focus:
                self._is_holding = (self._app.focused or self._app.screen).post_message(KeysHandled())
            if self._is_holding:
                self._limit = self._app.set_timer(LIMIT_S, self.release)
            else:
                event = self._held.popleft()
                in_field = isinstance(self._app.focused, LineField | TextField)
                self._may_move_focus = isinstance(event, Key) and not (event.is_printable and in_field)
                await self._deliver(event)
