"""Reads the files that a message names before it is sent."""

from __future__ import annotations

from pathlib import Path

from tqchat.ui.controller.controller import Controller
from tqchat.ui.input import attachments
from tqchat.ui.input.attachments import CannotAttach


class AttachmentCheck:
    """Adds attached files to messages. A name that may not be a file is an error only the first time."""

    def __init__(self, chat: Controller) -> None:
        self._chat = chat
        self._refused = ""

    def with_files(self, text: str, typed: str) -> str:
        """The message with the files that ``typed`` names, which is the text without folded pastes.

        Raises:
            CannotAttach: if one cannot be attached; the same text is accepted the second time if
                ``can_send_anyway`` is set.
        """
        strict = typed != self._refused
        self._refused = ""
        try:
            files = attachments.read_mentioned(typed, Path.cwd(), self._earlier(), strict=strict)
        except CannotAttach as error:
            self._refused = typed if error.can_send_anyway else ""
            raise
        return attachments.join(text, files)

    def _earlier(self) -> list[attachments.Attachment]:
        """The files of the message that is being edited."""
        fork = self._chat.shown.fork
        if fork is None or fork.edited_id is None:
            return []
        edited = next((one for one in self._chat.shown.messages if one.id == fork.edited_id), None)
        return attachments.split(edited.content)[1] if edited else []
