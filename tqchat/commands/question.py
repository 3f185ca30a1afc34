"""The question of ``tqchat run``: words of the command line, attached files, standard input."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from tqchat.errors import TqchatError
from tqchat.paths import working_folder
from tqchat.text import decode_text
from tqchat.ui.input.attachments import (
    MAX_FILE_BYTES,
    Attachment,
    CannotAttach,
    join,
    read_file,
    read_mentioned,
)
from tqchat.units import size

STANDARD_INPUT = "standard input"
"""Name under which piped text is attached to a question."""
_MAX_QUESTION_BYTES = 64_000_000
"""More than any model can read, and bounded memory for a pipe that never ends."""


class BadQuestion(TqchatError):
    """The question is missing, empty or not text."""

    exit_code = 2


def read(words: Sequence[str], files: Sequence[str] = ()) -> str:
    """The user message.

    Without words, or with ``-`` alone, standard input is the question. Otherwise text that is piped in is
    attached to the question like a file, as are ``@file`` among the words and ``files``.

    Raises:
        BadQuestion: if there is no question, standard input is not text, or a file cannot be attached.
    """
    try:
        return _read_all(words, files, working_folder())
    except CannotAttach as error:
        hint = "" if files else " Words after @ name files, except in a question that is piped in."
        raise BadQuestion(f"{error}{hint}") from error


def _read_all(words: Sequence[str], files: Sequence[str], folder: Path) -> str:
    attached = [read_file(folder, name) for name in files]
    if not words or list(words) == ["-"]:
        if sys.stdin is None or sys.stdin.isatty():
            raise BadQuestion('There is no question; write `tqchat run "question"` or pipe one in.')
        return join(_checked(_text(_read(_MAX_QUESTION_BYTES))), _each_once(attached))
    question = _checked(" ".join(words))
    attached += read_mentioned(question, folder)
    if _is_piped() and (context := _text(_read(MAX_FILE_BYTES))).strip():
        attached.append(Attachment(STANDARD_INPUT, context))
    return join(question, _each_once(attached))


def _checked(question: str) -> str:
    if not question.strip():
        raise BadQuestion('The question is empty; write `tqchat run "question"`.')
    return question.strip("\n")


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file. Anything else, such as /dev/null, is not waited for."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, ValueError, OSError, io.UnsupportedOperation):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _read(most: int) -> bytes:
    content = sys.stdin.buffer.read(most + 1)
    if len(content) > most:
        raise BadQuestion(f"Standard input has more than {size(most)}, more than any model can read.")
    return content


def _text(content: bytes) -> str:
    try:
        return decode_text(content)
    except UnicodeDecodeError as error:
        raise BadQuestion("The question on standard input is not UTF-8 text; convert it to UTF-8.") from error


def _each_once(files: Sequence[Attachment]) -> list[Attachment]:
    return list({file.name: file for file in files}.values())
