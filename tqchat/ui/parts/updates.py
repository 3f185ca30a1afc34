"""A look for a newer version of tqchat, once a week at most, with pip and the index it is configured for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from tqchat import __version__
from tqchat.text import one_line
from tqchat.ui.parts.preferences import Preferences

CHECK_INTERVAL_S = 7 * 24 * 3600
TIMEOUT_S = 30.0
_RELEASE = re.compile(r"[0-9]+(\.[0-9]+){0,3}")
"""Final releases only: pip names no other version unless it is asked to."""


def is_due(preferences: Preferences) -> bool:
    """Whether to look now: the last look was a week ago. The first start only begins the week."""
    if not preferences.settings.update_check or _is_offline():
        return False
    now, last = int(time.time()), preferences.state.version_checked
    if 0 <= now - last < CHECK_INTERVAL_S:
        return False
    preferences.remember_version_check(now)
    return last > 0


def look(say: Callable[[str], object]) -> None:
    """Have a newer version named if there is one; returns at once.

    Without a network, or where pip is missing, nothing is found.

    Args:
        say: Called on another thread.
    """

    def found() -> None:
        newest = newest_version()
        if newest is not None and _parts(newest) > _parts(__version__):
            say(
                f"tqchat {newest} is there; this is {__version__}. The setting update_check ends these looks."
            )

    threading.Thread(target=found, name="updates", daemon=True).start()


def newest_version() -> str | None:
    """The newest release that pip finds; ``None`` if it finds none, or cannot look."""
    # Isolated, so that a file pip.py in the current folder is not run.
    command = [sys.executable, "-I", "-m", "pip", "index", "versions", "tqchat"]
    options = ["--disable-pip-version-check", "--no-input", "--retries", "0", "--timeout", "5"]
    try:
        done = subprocess.run(
            [*command, *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    first = one_line(done.stdout.partition("\n")[0])
    found = re.fullmatch(r"tqchat \((.*)\)", first.strip())
    return found[1] if found and _RELEASE.fullmatch(found[1]) else None


def _parts(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"[0-9]{1,9}", version)]


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
