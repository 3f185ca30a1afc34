"""The system's clipboard, beside the one that the terminal is asked for (OSC 52), which many do not grant."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

SECONDS = 2.0
"""A clipboard that takes longer does not answer."""


def command(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> list[str] | None:
    """The program that writes the clipboard of this desktop; ``None`` where there is none."""
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
    """Put a text on the desktop's clipboard; whether that was possible. Blocks for a moment."""
    program = command()
    if program is None:
        return False
    try:
        # These programs stay to serve the clipboard: their output must not be waited for.
        done = subprocess.run(
            program,
            input=text.encode(errors="replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
