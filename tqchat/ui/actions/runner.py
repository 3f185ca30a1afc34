"""Runs actions on the app's parts, and shows their errors."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable

from textual.screen import ModalScreen

from tqchat.errors import TqchatError
from tqchat.ui.actions.registry import Refused, Registry
from tqchat.ui.parts.parts import Parts


class ActionRunner:
    """Runs actions by name."""

    def __init__(self, actions: Registry, parts: Parts) -> None:
        self.actions, self.parts = actions, parts

    def allowed(self, name: str) -> bool:
        """Whether an action applies now. While a dialog is open, most do not."""
        action = self.actions.get(name)
        if action is None:
            return False
        if not action.over_dialogs and isinstance(self.parts.host.screen, ModalScreen):
            return False
        return action.applies(self.parts)

    def run(self, name: str, argument: str = "") -> bool:
        """Run an action; ``False`` if it failed or was refused, which is shown above the prompt.

        A ``message`` action acts on the marked message, or on the last if none is marked.
        """
        action, parts = self.actions[name], self.parts
        if action.scope == "message" and parts.log.marked is None and not parts.log.move_mark(-1):
            parts.say("There is no message yet.")
            return False
        # An argument may contain anything: a path with a NUL, half a surrogate pair.
        expected = (TqchatError, OSError, ValueError) if argument else (TqchatError, OSError)
        try:
            waiting = action.run(parts, argument)
        except expected as error:
            self._report(error)
            return False
        if inspect.isawaitable(waiting):
            parts.host.run_worker(self._finish(waiting))
        else:
            parts.unsent.settle()
        return True

    async def _finish(self, waiting: Awaitable[None]) -> None:
        try:
            await waiting
        except (TqchatError, OSError) as error:
            self._report(error)
        self.parts.unsent.settle()

    def _report(self, error: Exception) -> None:
        severity = error.severity if isinstance(error, Refused) else "error"
        self.parts.say(str(error) or "This is not possible.", severity)
        self.parts.screen.conversations_changed()
