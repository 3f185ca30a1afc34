"""Completion in the prompt, as suggestions above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tqchat.ui.input.completion import completions, is_complete
from tqchat.ui.input.slash import Command
from tqchat.ui.screens.chat import ChatScreen
from tqchat.ui.widgets.prompt.prompt import Prompt
from tqchat.ui.widgets.prompt.suggestions import Suggestions


class PromptCompletion:
    """Suggests completions of the text before the cursor and inserts the chosen one."""

    def __init__(self, screen: ChatScreen, commands: Callable[[], Sequence[Command]]) -> None:
        self._screen, self._commands = screen, commands

    @property
    def _prompt(self) -> Prompt:
        return self._screen.query_one(Prompt)

    @property
    def _suggestions(self) -> Suggestions:
        return self._screen.query_one(Suggestions)

    def update(self) -> None:
        """Suggest for the text as it is now."""
        prompt, commands = self._prompt, self._commands()
        line, row = prompt.before_cursor, prompt.cursor_location[0]
        found = completions(line, commands, first_line=row == 0 and prompt.document.line_count == 1)
        prompt.has_suggestions = bool(found)
        prompt.enter_completes = bool(found) and not is_complete(line, commands)
        self._suggestions.show(found)

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
        had = self._suggestions.chosen is not None
        self._suggestions.show([])
        self._prompt.has_suggestions = self._prompt.enter_completes = False
        return had
