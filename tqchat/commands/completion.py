"""``tqchat completion``: prints a script that completes the command line in a shell."""

from __future__ import annotations

import argparse

from tqchat.errors import TqchatError
from tqchat.kv.scheme import SCHEMES

SHELLS = ("bash", "zsh", "fish")


class NoShtab(TqchatError):
    """The library that writes completion scripts is not installed."""

    exit_code = 2

    def __init__(self) -> None:
        super().__init__(
            "Completion scripts need the package shtab; install it with `pip install 'tqchat[completion]'`."
        )


def main(parser: argparse.ArgumentParser, shell: str) -> int:
    """Print the script that completes commands, options, schemes and file names in a shell.

    Raises:
        NoShtab: if shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise NoShtab from error
    _complete_values(parser, shtab.FILE, shtab.DIRECTORY)
    print(shtab.complete(parser, shell=shell))
    return 0


def _complete_values(parser: argparse.ArgumentParser, files: object, folders: object) -> None:
    """Let arguments that name schemes, files and folders complete as such.

    The parser is only described afterwards: it would refuse other spellings of schemes.
    """
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_values(command, files, folders)
            continue
        name = action.metavar if isinstance(action.metavar, str) else action.dest
        if name == "SCHEME":
            action.choices = ["auto", *(scheme.name for scheme in SCHEMES)]
        elif name in ("FOLDER", "MODEL"):
            action.complete = folders  # type: ignore[attr-defined]
        elif "FILE" in name or "OUT" in name or "." in name:
            action.complete = files  # type: ignore[attr-defined]
