"""The files that the prompt names: shown before a message is sent, read when it is."""

from __future__ import annotations

from collections.abc import Callable

from tqchat.paths import working_folder
from tqchat.ui.controller.controller import Controller
from tqchat.ui.input import attachments
from tqchat.ui.input.attachments import CannotAttach
from tqchat.ui.widgets.prompt.attached import AttachedFiles
from tqchat.ui.widgets.prompt.prompt import Prompt


class AttachmentCheck:
    """Shows the files that the prompt names, and adds them to messages.

    A typed name of a file that cannot be attached is an error the first time; a pasted one is only words.

    Args:
        in_thread: Runs a blocking function in a thread.
        on_screen: Calls a function on the screen's thread.
    """

    def __init__(
        self,
        chat: Controller,
        prompt: Callable[[], Prompt],
        shown: Callable[[], AttachedFiles],
        in_thread: Callable[[Callable[[], object]], None],
        on_screen: Callable[[Callable[[], object]], object],
    ) -> None:
        self._chat, self._prompt, self._shown = chat, prompt, shown
        self._in_thread, self._on_screen = in_thread, on_screen
        self._refused = ""
        self._as_words: frozenset[str] = frozenset()
        self._previewed: tuple[object, ...] = ()

    def update(self, again: bool = False) -> None:
        """Show the files that the text in the prompt names. Files are read in a thread.

        Args:
            again: Whether to look for changed files although the names are the same.
        """
        text = self._prompt().text
        names = attachments.written_names(text)
        if not text:
            self._as_words = frozenset()
        earlier, as_words = self._earlier(), self._as_words
        wanted = (names, as_words, tuple(one.name for one in earlier))
        if wanted == self._previewed and not (again and names):
            return
        self._previewed = wanted
        if not names:
            self._shown().show([])
            return

        def read() -> None:
            found = attachments.preview(text, working_folder(), earlier, as_words)
            self._on_screen(lambda: self._shown().show(found) if self._previewed == wanted else None)

        self._in_thread(read)

    def toggle(self) -> bool:
        """Send the names of files as words, or attach the files again; whether there are any."""
        names = frozenset(file.name for file in self._shown().files if file.attached)
        self._as_words = frozenset() if self._as_words else names
        self.update()
        return bool(self._shown().files)

    def with_files(self, text: str, typed: str) -> str:
        """The message with the files that ``typed`` names, which is the text without folded pastes.

        Raises:
            CannotAttach: if one cannot be attached; the same text is accepted the second time.
        """
        strict = typed != self._refused
        self._refused = ""
        try:
            files = attachments.read_mentioned(
                typed,
                working_folder(),
                self._earlier(),
                strict=strict,
                known_text=self._prompt().known_text,
                as_words=self._as_words,
            )
        except CannotAttach:
            self._refused = typed
            self.update(again=True)
            raise
        return attachments.join(text, files)

    def _earlier(self) -> list[attachments.Attachment]:
        """The files of the message that is being edited."""
        fork = self._chat.shown.fork
        if fork is None or fork.edited_id is None:
            return []
        edited = next((one for one in self._chat.shown.messages if one.id == fork.edited_id), None)
        return attachments.split(edited.content)[1] if edited else []
