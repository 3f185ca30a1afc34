"""``tqchat`` without a command: opens the app."""

from __future__ import annotations

import io
import os
import sys

from tqchat import paths, settings
from tqchat.commands.conversations.reading import open_conversation
from tqchat.commands.interruption import end_process
from tqchat.errors import TqchatError
from tqchat.kv.scheme import scheme_setting
from tqchat.store.errors import UnknownConversation
from tqchat.text import printable


class NoTerminal(TqchatError):
    """The standard streams are not a terminal."""

    exit_code = 2

    def __init__(self) -> None:
        super().__init__(
            'The app needs a terminal; in pipes and scripts use `tqchat run "question"` instead.'
        )


class NoCommand(TqchatError):
    """What stands in place of a command is no conversation's id."""

    exit_code = 2

    def __init__(self, error: UnknownConversation) -> None:
        super().__init__(f"{str(error).removesuffix('.')}, and `tqchat --help` the commands.")


def _emptied(locations: paths.Paths) -> list[str]:
    """A warning if the file of the conversations was emptied, though some of them have saved caches."""
    file = locations.database
    log = file.with_name(f"{file.name}-wal")
    try:
        if file.stat().st_size or (log.exists() and log.stat().st_size):
            return []
        cached = sum(1 for folder in locations.caches.iterdir() if folder.is_dir())
    except OSError:
        return []
    if not cached:
        return []
    chats = "1 conversation has" if cached == 1 else f"{cached} conversations have"
    return [
        f"{file} was empty, though {chats} a saved cache: if you have a backup of the file, put it back "
        "before you go on."
    ]


def main(
    *,
    model: str | None,
    scheme: str | None,
    draft: str | None = None,
    adapter: str | None = None,
    pack_prompts: bool = False,
    conversation: str | None = None,
    without_command: bool = False,
) -> int:
    """Open the app, and end the process with its exit code.

    Args:
        conversation: Id of the conversation to open, or a unique prefix; by default the one that was open
            last.
        without_command: Whether the id stands in place of a command, which it may have been meant for.

    Raises:
        UnknownConversation, NoCommand: if there is no such conversation.
        NoTerminal: if the standard streams are not a usable terminal.
        UnknownScheme: if there is no such scheme.
        UnusableFolder: if conversations cannot be stored. Settings and files that cannot be used are reported
            in the app.
    """
    if scheme is not None:
        scheme = scheme_setting(scheme)
    if conversation is not None:
        try:
            with open_conversation(conversation) as (_, found):
                conversation = found.id
        except UnknownConversation as error:
            raise NoCommand(error) if without_command else error from None
    # Textual reads standard input and draws on standard error; with TEXTUAL_DRIVER (serve) it uses pipes.
    streams = (sys.stdin, sys.stdout, sys.stderr)
    drawn = all(stream is not None and stream.isatty() for stream in streams)
    if not os.environ.get("TEXTUAL_DRIVER") and (os.environ.get("TERM") == "dumb" or not drawn):
        raise NoTerminal
    if isinstance(sys.__stderr__, io.TextIOWrapper):
        # Keys are read as UTF-8 whatever the locale says, and older encodings have no frames.
        sys.__stderr__.reconfigure(encoding="utf-8", errors="replace")
    locations = paths.locate()
    user_settings, problems = settings.read_config(locations)
    problems += locations.ensure()
    problems += _emptied(locations)

    from tqchat.ui.app import TqchatApp

    if pack_prompts:
        user_settings = user_settings.with_values({"pack_prompts": True})
    app = TqchatApp(
        locations,
        user_settings,
        model=model,
        scheme=scheme,
        draft=draft,
        adapter=adapter,
        problems=problems,
    )
    if conversation is not None:
        app.parts.preferences.remember_conversation(conversation)
    app.signals.install()
    app.run()
    code = app.signals.exit_code or app.return_code or 0
    for sentence in app.parts.last_words:
        print(f"tqchat: {printable(sentence)}", file=sys.stderr)
    end_process(code)
