"""Commands that are written into the prompt: what there are, how they are read, how they complete."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Slash:
    """A command: its name, what may follow it, what it does."""

    name: str
    argument: str
    help: str


COMMANDS: tuple[Slash, ...] = (
    Slash("scheme", "NAME", "store this conversation's cache another way"),
    Slash("model", "[NAME]", "load another model"),
    Slash("new", "", "begin a conversation"),
    Slash("room", "", "say how full the context is, and what can be done"),
    Slash("rename", "TITLE", "give this conversation another title"),
    Slash("search", "WORDS", "look in titles and messages"),
    Slash("system", "[TEXT]", "what the model is told before the first message"),
    Slash("set", "NAME=VALUE ...", "how replies are drawn here, such as temperature=0.7"),
    Slash("preset", "[NAME|save NAME|delete NAME]", "take over a named way to draw replies, or keep one"),
    Slash("copy", "[code|chat]", "copy the last reply, its code, or the chat"),
    Slash("export", "[FILE]", "write this conversation as Markdown"),
    Slash("theme", "[NAME]", "choose the colours"),
    Slash("settings", "", "show and change all settings"),
    Slash("help", "", "show all keys"),
)
NAMES = tuple(command.name for command in COMMANDS)


def read(text: str) -> tuple[str, str] | None:
    """A command's name and the rest, if the text is one. ``//`` and paths begin a message."""
    match = _COMMAND.fullmatch(text.strip())
    return (match[1], (match[2] or "").strip()) if match else None


def message(text: str) -> str:
    """What is sent of a text that is no command: a doubled slash at its beginning stands for one."""
    return text[1:] if text.startswith("//") else text


def suggestions(text: str, values: Mapping[str, Callable[[], Sequence[str]]]) -> list[str]:
    """The whole lines that what is written may become, in order; ``values`` tells what follows a name."""
    if not text.startswith("/") or "\n" in text:
        return []
    name, space, argument = text[1:].partition(" ")
    if not space:
        return [f"/{command.name}" for command in COMMANDS if command.name.startswith(name)]
    known = values.get(name)
    if known is None:
        return []
    before, last = argument.rpartition(" ")[0], argument.rpartition(" ")[2]
    head = f"/{name} {before} " if before else f"/{name} "
    return [head + value for value in known() if value.startswith(last) and value != last]


def described(line: str) -> str:
    """What a suggested line does, if it is a command alone."""
    return next((command.help for command in COMMANDS if line == f"/{command.name}"), "")


def assignments(text: str) -> dict[str, str]:
    """``name=value`` pairs as they were written; a name without a value clears its setting."""
    return {
        name.strip(): value.strip()
        for name, _, value in (pair.partition("=") for pair in re.sub(r"\s*=\s*", "=", text).split())
    }


def number(text: str) -> int | float | None:
    """A value as it was meant; ``None`` for one that is left to the settings.

    Raises:
        ValueError: if it is no number.
    """
    if text in ("", "default", "none"):
        return None
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
