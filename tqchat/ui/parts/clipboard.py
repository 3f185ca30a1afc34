"""The desktop's clipboard, for terminals that do not support OSC 52."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

TIMEOUT_S = 2.0
"""Time limit of the clipboard program."""


def command(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> list[str] | None:
    """The program that writes this desktop's clipboard; ``None`` if none is installed."""
    if platform == "darwin":
        choices = [["pbcopy"]]
    else:
        choices = []
        if environment.get("WAYLAND_DISPLAY"):
            choices.append(["wl-copy"])
        if environment.get("DISPLAY"):
            choices += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
        if environment.get("WSL_DISTRO_NAME"):
            choices.append(["clip.exe"])
    path = environment.get("PATH")
    return next((choice for choice in choices if shutil.which(choice[0], path=path)), None)


def write(text: str) -> bool:
    """Put a text on the desktop's clipboard; whether that worked. Blocks for up to ``TIMEOUT_S``."""
    program = command()
    if program is None:
        return False
    try:
        # These programs keep running to serve the clipboard: waiting for their output would block.
        done = subprocess.run(
            program,
            input=text.encode(errors="replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
