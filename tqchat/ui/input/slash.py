"""Slash commands in the prompt: parsing and completion."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A slash command for completion; ``values`` returns its known arguments, if it has any."""

    word: str
    help: str
    values: Callable[[], Sequence[str]] | None = None


def read(text: str) -> tuple[str, str] | None:
    """The word and the argument of a command; ``None`` for a message, such as one that begins with a path."""
    match = _COMMAND.fullmatch(text.strip())
    return (match[1], (match[2] or "").strip()) if match else None


def message(text: str) -> str:
    """The message of a text: a leading ``//`` stands for one slash."""
    return text[1:] if text.startswith("//") else text


def find(word: str, commands: Sequence[Command]) -> Command | None:
    """The command of a word."""
    return next((command for command in commands if command.word == word), None)


def suggestions(text: str, commands: Sequence[Command]) -> list[str]:
    """The complete lines that ``text`` can become, in order."""
    if not text.startswith("/") or "\n" in text:
        return []
    word, space, argument = text[1:].partition(" ")
    if not space:
        return [f"/{command.word}" for command in commands if command.word.startswith(word)]
    command = find(word, commands)
    if command is None or command.values is None:
        return []
    before, last = argument.rpartition(" ")[0], argument.rpartition(" ")[2]
    head = f"/{word} {before} " if before else f"/{word} "
    return [head + value for value in command.values() if value.startswith(last) and value != last]


def described(line: str, commands: Sequence[Command]) -> str:
    """The help of a line that is a command without an argument."""
    command = find(line[1:], commands)
    return command.help if command else ""


def assignments(text: str) -> dict[str, str]:
    """``name=value`` pairs as written; a name without a value clears its setting."""
    return {
        name.strip(): value.strip()
        for name, _, value in (
            pair.partition("=") for pair in "=".join(side.strip() for side in text.split("=")).split()
        )
    }


def number(text: str) -> int | float | None:
    """A value as a number; ``None`` for one that is left to the settings.

    Raises:
        ValueError: if it is no number.
    """
    if text in ("", "default", "none"):
        return None
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
