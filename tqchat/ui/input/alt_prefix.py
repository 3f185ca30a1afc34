"""A key that stands for Alt: on a Mac keyboard, Alt types characters."""

from __future__ import annotations

from collections.abc import Callable

from textual.events import Key


class AltPrefix:
    """Reads the prefix key and the key after it as Alt with that key.

    Args:
        keys: The prefix keys in force.
        is_free: Whether the prefix applies now: no dialog is open, the focused widget does not need it.
        on_change: Called with whether the next key is awaited.
    """

    def __init__(
        self, keys: Callable[[], list[str]], is_free: Callable[[], bool], on_change: Callable[[bool], None]
    ) -> None:
        self._keys, self._is_free, self._on_change = keys, is_free, on_change
        self._waits = False

    def read(self, event: Key) -> Key | None:
        """The key that is meant; ``None`` if the next key decides, or none is meant."""
        if self._waits:
            self._waits = False
            self._on_change(False)
            cancelled = event.key == "escape" or event.key in self._keys()
            return None if cancelled else Key(f"alt+{event.key}", None)
        if event.key in self._keys() and self._is_free():
            self._waits = True
            self._on_change(True)
            return None
        return event
