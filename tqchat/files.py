"""Small files: safe reading, keeping what cannot be understood, atomic writing, removal of leftovers.

Files come from users, other programs and the internet. Nothing here waits for a pipe, opens a device, or
reads more than a limit into memory.
"""

from __future__ import annotations

import glob
import io
import json
import os
import re
import shutil
import stat
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w

from tqchat.errors import TqchatError
from tqchat.text import one_line

MAX_TOML_BYTES = 1 << 20
MAX_JSON_BYTES = 16 << 20
_READ_BYTES = 1 << 16
_MAX_NESTING = 64
_MAX_KEY_PARTS = 64
# tomllib takes quadratic time for one key of very many parts.
_KEY_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_LONG_KEY = re.compile(rf"(?<![\w-])(?:{_KEY_PART}){{{_MAX_KEY_PARTS}}}", re.ASCII)


class Unreadable(TqchatError):
    """A file is no regular file, too large, or cannot be understood. ``reason`` is the end of a sentence."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{one_line(str(path))} {reason}.")


class NotWritten(TqchatError):
    """A file could not be written; what it held before is intact."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{one_line(str(path))} cannot be written ({reason}).")


def reason_of(error: OSError) -> str:
    """The system's words for an error, for the middle of a sentence."""
    return (error.strerror or str(error)).lower()


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; links to one are followed.

    Raises:
        FileNotFoundError: if it does not exist.
        Unreadable: if it is a folder, a pipe, a socket or a device, or cannot be opened.
    """
    try:
        # A device is not even opened, because that can have effects; the second check is for a file that is
        # replaced in between. O_NONBLOCK does not wait for the other end of a pipe.
        if not stat.S_ISREG(path.stat().st_mode):
            raise Unreadable(path, "cannot be read (it is no regular file)")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Unreadable(path, "cannot be read (it is no regular file)")
        return os.fdopen(descriptor, "rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(path, f"cannot be read ({reason_of(error)})") from error
    except ValueError as error:  # a NUL in the path
        raise Unreadable(path, "is no name of a file") from error


def read_bytes(path: Path, most: int) -> bytes:
    """Content of a regular file of at most ``most`` bytes.

    Raises:
        FileNotFoundError, Unreadable: as ``open_regular``, and if it is larger.
    """
    content = bytearray()
    with open_regular(path) as file:
        try:
            # In pieces: a single read of many bytes allocates all of them first.
            while len(content) <= most and (piece := file.read(_READ_BYTES)):
                content += piece
        except OSError as error:
            raise Unreadable(path, f"cannot be read ({reason_of(error)})") from error
    if len(content) > most:
        raise Unreadable(path, f"is too large (at most {most:,} bytes)")
    return bytes(content)


def read_toml(path: Path, most: int = MAX_TOML_BYTES) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        FileNotFoundError, Unreadable: as ``read_bytes``, and if it is no UTF-8 text or no valid TOML.
    """
    content = read_bytes(path, most)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(path, "is not UTF-8 text; save it as UTF-8") from error
    if _LONG_KEY.search(text):
        raise Unreadable(path, f"is not valid TOML: a key has more than {_MAX_KEY_PARTS} parts")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Unreadable(path, f"is not valid TOML: {_short(str(error))}") from error
    except RecursionError as error:
        raise Unreadable(path, "is not valid TOML: it is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits, a date that does not exist
        raise Unreadable(path, f"is not valid TOML: {_short(str(error))}") from error
    if is_nested_deeply(table):
        raise Unreadable(path, "is nested too deeply")
    return table


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        FileNotFoundError, Unreadable: as ``read_bytes``, and if it is no JSON object.
    """
    content = read_bytes(path, most)
    try:
        table = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unreadable(path, "is no valid JSON") from error
    if not isinstance(table, dict):
        raise Unreadable(path, "is no JSON table")
    if is_nested_deeply(table):
        raise Unreadable(path, "is nested too deeply")
    return table


_STALE_S = 24 * 3600
"""Older leftovers are removed even if the process id in their name is in use again."""
_STALE_UNNAMED_S = 3600
"""Likewise for those without a process id in their name."""
_TEMPORARY_PREFIX = "tqchat-tmp-"
_SPILLS = Path("/var/tmp")


def write_atomically(path: Path, content: bytes, durable: bool = True) -> None:
    """Replace a file's content atomically. The mode is 0600.

    Args:
        durable: Whether it is flushed to disk, so that a power loss leaves the old content or the new.

    Raises:
        OSError: if writing fails; the old file is then intact.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=own_prefix(temporary_prefix(path)))
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_prefix(path: Path) -> str:
    """Prefix of the temporary files that ``write_atomically`` makes beside a file."""
    return f".{path.name}."


def own_prefix(prefix: str) -> str:
    """A prefix for temporary files that names this process, so that later ones know whether it still runs."""
    return f"{prefix}{os.getpid()}-"


def spill_folder() -> Path:
    """Folder of large temporary files: ``/var/tmp`` unless TMPDIR is set, as ``/tmp`` is often in memory."""
    own = "TMPDIR" in os.environ or not os.access(_SPILLS, os.W_OK)
    return Path(tempfile.gettempdir()) if own else _SPILLS


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the system's temporary one, deleted at the end; after a kill, by the next process.

    Raises:
        OSError: if it cannot be made.
    """
    remove_temporary_folders()
    with tempfile.TemporaryDirectory(prefix=own_prefix(_TEMPORARY_PREFIX)) as folder:
        yield Path(folder)


def remove_temporary_folders() -> None:
    """Delete the temporary folders of killed processes."""
    with suppress(OSError):  # there is no place for temporary files
        remove_leftovers(Path(tempfile.gettempdir()), _TEMPORARY_PREFIX)


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


def update_toml(
    path: Path, change: Callable[[dict[str, Any]], object], *, replace_damaged: bool = False
) -> Path | None:
    """Change some values of a TOML file and keep all others, those that this version does not know included.

    Comments and layout cannot be kept: a file that was edited by hand is copied beside itself first. So is,
    with ``replace_damaged``, a file that cannot be understood; without it, nothing is written.

    Returns:
        The copy, if one was made.

    Raises:
        Unreadable: if the file cannot be read or understood, so that writing would lose what is in it.
        NotWritten: if it or its copy cannot be written.
    """
    if path.is_symlink() and path.is_file():
        path = Path(os.path.realpath(path))  # the link stays one
    table: dict[str, Any] = {}
    kept: Path | None = None
    try:
        try:
            table = read_toml(path)
            if read_bytes(path, MAX_TOML_BYTES) != _toml(path, table):
                kept = _copy_beside(path)
        except FileNotFoundError:
            pass
        except Unreadable:
            if not replace_damaged:
                raise
            table, kept = {}, keep_beside(path)
        change(table)
        write_atomically(path, _toml(path, table))
    except OSError as error:
        raise NotWritten(path, reason_of(error)) from error
    return kept


def _toml(path: Path, table: Mapping[str, Any]) -> bytes:
    try:
        return tomli_w.dumps(table).encode()
    except ValueError as error:
        raise Unreadable(path, "holds a number that is too large to be written again") from error


def keep_beside(path: Path) -> Path:
    """Rename a file to a dated name in the same folder, so that a new one can take its place.

    Raises:
        OSError: if it cannot be renamed.
    """
    kept = _dated(path)
    path.rename(kept)
    return kept


def _copy_beside(path: Path) -> Path:
    kept = _dated(path)
    write_atomically(kept, path.read_bytes())
    return kept


def _dated(path: Path) -> Path:
    """An unused name: ``presets.2026-11-25-1905.toml``."""
    stem = f"{path.stem}.{time.strftime('%Y-%m-%d-%H%M')}"
    kept, number = path.with_name(f"{stem}{path.suffix}"), 2
    while kept.exists() or kept.is_symlink():
        kept, number = path.with_name(f"{stem}-{number}{path.suffix}"), number + 1
    return kept


def is_nested_deeply(table: object) -> bool:
    """Whether lists and tables lie in each other more deeply than any file of ours or of a model has them.

    Whatever walks them later, a library's code included, may call itself at each level.
    """
    level = [table]
    for _ in range(_MAX_NESTING):
        level = [
            below
            for one in level
            if isinstance(one, dict | list)
            for below in (one.values() if isinstance(one, dict) else one)
            if isinstance(below, dict | list)
        ]
        if not level:
            return False
    return True


def _short(text: str, most: int = 200) -> str:
    text = one_line(text).rstrip(".")
    return text if len(text) <= most else f"{text[: most - 1]}…"
