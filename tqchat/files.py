"""Atomic writes of small files, and removal of what killed processes have left."""

from __future__ import annotations

import glob
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path

_STALE_S = 24 * 3600
"""Older leftovers are removed even if the process id in their name is in use again."""
_STALE_UNNAMED_S = 3600
"""Likewise for those without a process id in their name."""
SPILL_PREFIX = "tqchat-convert-"
"""Of the folder that a cache conversion needs."""
_SPILLS = Path("/var/tmp")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content atomically and flush it to disk. The mode is 0600.

    Raises:
        OSError: if writing fails; the old file is then intact.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=own_prefix(temporary_prefix(path)))
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_prefix(path: Path) -> str:
    """How the names of temporary files begin that ``write_atomically`` makes beside a file."""
    return f".{path.name}."


def own_prefix(prefix: str) -> str:
    """A prefix for temporary files that names this process, so that later ones know whether it still runs."""
    return f"{prefix}{os.getpid()}-"


def spill_folder() -> Path:
    """Where large files go: ``/var/tmp`` unless TMPDIR is set, because ``/tmp`` is often in memory."""
    own = "TMPDIR" in os.environ or not os.access(_SPILLS, os.W_OK)
    return Path(tempfile.gettempdir()) if own else _SPILLS


def remove_leftovers(folder: Path, prefix: str) -> None:
    """Delete this user's temporary files and folders that begin with a prefix and whose process has ended."""
    for path in folder.glob(f"{glob.escape(prefix)}*"):
        try:
            status = path.lstat()
            if status.st_uid == os.getuid() and _is_left_over(path.name[len(prefix) :], status.st_mtime):
                if stat.S_ISDIR(status.st_mode):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        except OSError:
            continue  # removed meanwhile, or tried again at the next start


def _is_left_over(rest: str, changed_at: float) -> bool:
    age_s = time.time() - changed_at
    named = re.match(r"([0-9]{1,9})-", rest, re.ASCII)
    if named is None:
        return age_s > _STALE_UNNAMED_S
    return age_s > _STALE_S or not _runs(int(named[1]))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True
