"""``tqchat``: opens the app."""

from __future__ import annotations

import os
import sys

from tqchat import paths, settings
from tqchat.errors import TqchatError
from tqchat.kv.scheme import scheme_setting


class NoTerminal(TqchatError):
    """The app has no screen to draw on."""

    exit_code = 2

    def __init__(self) -> None:
        super().__init__(
            'The app needs a terminal to draw on; in pipes and scripts use `tqchat run "question"` instead.'
        )


def main(
    *, model: str | None, scheme: str | None, draft: str | None = None, pack_prompts: bool = False
) -> int:
    """Open the app and return its exit code.

    Raises:
        NoTerminal: if the standard streams are no terminal that can be drawn on.
        SettingsError, UnknownScheme: if what the user asked for cannot be.
    """
    if scheme is not None:
        scheme = scheme_setting(scheme)
    # Textual reads standard input and draws on standard error; served to a browser it uses pipes instead.
    streams = (sys.stdin, sys.stdout, sys.stderr)
    drawn = all(stream is not None and stream.isatty() for stream in streams)
    if not os.environ.get("TEXTUAL_DRIVER") and (os.environ.get("TERM") == "dumb" or not drawn):
        raise NoTerminal
    places = paths.locate()
    wishes = settings.configured(places)
    places.ensure()

    from tqchat.ui.app import TqchatApp

    if pack_prompts:
        wishes = wishes.changed({"pack_prompts": True})
    app = TqchatApp(places, wishes, model=model, scheme=scheme, draft=draft)
    app.run()
    return app.return_code or 0
