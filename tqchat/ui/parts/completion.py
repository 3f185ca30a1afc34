"""Completion in the prompt, as suggestions above it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqchat.paths import working_folder
from tqchat.ui.input.completion import completions, is_complete, mention
from tqchat.ui.input.file_tree import paths_below
from tqchat.ui.input.slash import Command
from tqchat.ui.screens.chat import ChatScreen
from tqchat.ui.widgets.prompt.prompt import Prompt
from tqchat.ui.widgets.prompt.suggestions import Suggestions

LISTING_AGE_S = 10.0
"""A listing of the start folder is used for this long."""


class PromptCompletion:
    """Suggests completions of the text before the cursor and inserts the chosen one.

    Args:
        in_thread: Runs a blocking function in a thread.
        on_screen: Calls a function on the screen's thread.
    """

    def __init__(
        self,
        screen: ChatScreen,
        commands: Callable[[], Sequence[Command]],
        in_thread: Callable[[Callable[[], object]], None],
        on_screen: Callable[[Callable[[], object]], object],
    ) -> None:
        self._screen, self._commands = screen, commands
        self._in_thread, self._on_screen = in_thread, on_screen
        self._folder: Path | None = None
        self._paths: Sequence[str] = ()
        self._listed_at: float | None = None
        self._is_listing = False
        self._suggested: tuple[object, ...] = ()
        self._is_closed = False

    @property
    def _prompt(self) -> Prompt:
        return self._screen.query_one(Prompt)

    @property
    def _suggestions(self) -> Suggestions:
        return self._screen.query_one(Suggestions)

    def update(self) -> None:
        """Suggest for the text as it is now; what was closed or moved for this text stays so."""
        prompt = self._prompt
        wanted = (prompt.text, prompt.cursor_location, prompt.ends_with_paste)
        if wanted == self._suggested:
            return
        self._suggested, self._is_closed = wanted, False
        line, row = prompt.before_cursor, prompt.cursor_location[0]
        if mention(line) is not None and not prompt.ends_with_paste:
            self._list_files()
        self._suggest(line, first_line=row == 0 and prompt.document.line_count == 1)

    def _suggest(self, line: str, first_line: bool) -> None:
        prompt, commands = self._prompt, self._commands()
        found = (
            []
            if prompt.ends_with_paste or prompt.is_in_word
            else completions(line, commands, first_line=first_line, paths=self._paths)
        )
        prompt.has_suggestions = bool(found)
        prompt.enter_completes = bool(found) and found[0].continues and not is_complete(line, commands)
        self._suggestions.show(found)

    def _list_files(self) -> None:
        """List the files below the start folder in a thread, unless that was done just now."""
        folder = working_folder()
        if folder != self._folder:
            self._folder, self._paths, self._listed_at = folder, (), None
        is_recent = self._listed_at is not None and time.monotonic() - self._listed_at < LISTING_AGE_S
        if self._is_listing or is_recent:
            return
        self._is_listing = True

        def read() -> None:
            paths = paths_below(folder)
            self._on_screen(lambda: self._listed(folder, paths))

        self._in_thread(read)

    def _listed(self, folder: Path, paths: Sequence[str]) -> None:
        self._is_listing = False
        if folder != self._folder:
            return
        self._listed_at = time.monotonic()
        if paths != self._paths:
            self._paths = paths
            if not (self._is_closed or self._suggestions.moved):
                self._suggested = ()
                self.update()

    def choose(self, step: int) -> None:
        """Move among the suggestions, or insert the chosen one (``step`` 0); without any, move the focus."""
        chosen = self._suggestions.chosen
        if chosen is None:
            self._screen.focus_next()
        elif step:
            self._suggestions.move(step)
            self._prompt.enter_completes = True
        else:
            self._prompt.complete(chosen.start, chosen.insert)

    def close(self) -> bool:
        """Hide the suggestions until more is typed; whether there were any."""
        had, self._is_closed = self._suggestions.chosen is not None, True
        self._suggestions.show([])
        self._prompt.has_suggestions = self._prompt.enter_completes = False
        return had
