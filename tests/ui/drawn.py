"""What the screen shows, read as the app draws it."""

from __future__ import annotations

from textual._context import visible_screen_stack
from textual.app import App
from textual.strip import Strip


def drawn(app: App[None]) -> list[Strip]:
    """The lines of the screen, each as wide as the app.

    A dialog draws the screen behind it only while Textual knows which one that is: the app says so before
    it draws, and so must a test, whose drawing is the one that counts if something was due to be redrawn.
    """
    visible_screen_stack.set(app._background_screens)
    return app.screen._compositor.render_strips()
