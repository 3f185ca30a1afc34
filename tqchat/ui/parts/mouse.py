"""Whether the app or the terminal has the mouse."""

from __future__ import annotations

from typing import Any

from textual.app import App


def capture(app: App[Any], wanted: bool) -> None:
    """Take the mouse, or leave it to the terminal, whose own selection works then."""
    driver: Any = app._driver
    if not hasattr(driver, "_enable_mouse_support") or driver._mouse == wanted:
        return  # the driver of tests has no mouse
    # A driver without the mouse neither enables nor disables it, when the app is resumed for instance.
    driver._mouse = True
    if wanted:
        driver._enable_mouse_support()
    else:
        driver._disable_mouse_support()
    driver._mouse = wanted
