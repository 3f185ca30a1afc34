"""Feeds mutated files to every reader, in processes with limits of time and memory."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqchat.errors import TqchatError
from tqchat.lab.endure import CheckFailed, require

if TYPE_CHECKING:
    from tqchat.lab.endure.content import Format
    from tqchat.lab.endure.readers import Reader

CPU_LIMIT_S = 20
"""Processor time of one file."""
IDLE_LIMIT_S = 120
"""Without a result for so long, a reader counts as waiting for ever."""
ADDRESS_SPACE_BYTES = 4 << 30
"""Address space that a process may take beyond what its libraries need."""
MAX_MEMORY_RATIO, MEMORY_SLACK_BYTES = 20, 256 << 20
"""Memory limit of one file: this multiple of its size, plus a constant."""
_SPECIAL_SHARE = 0.05
_SPARSE_BYTES = 1 << 41
"""Length of a file that has holes: none of it may be read at once, or to the end."""


@dataclass
class Count:
    """Files of one reader by outcome. ``peak_bytes`` is the most memory that one file took."""

    name: str
    files: int = 0
    used: int = 0
    refused: int = 0
    peak_bytes: int = 0


def reader_names() -> list[str]:
    """The names of all readers."""
    from tqchat.lab.endure.readers import READERS

    return [reader.name for reader in READERS]


def chosen(names: str | None) -> list[str]:
    """The readers of a list separated by commas; all of them for ``None``.

    Raises:
        CheckFailed: if one is unknown.
    """
    known = reader_names()
    if names is None:
        return known
    found = [name.strip() for name in names.split(",")]
    unknown = [name for name in found if name not in known]
    require(not unknown, f"There is no reader {', '.join(unknown)}; the readers are {', '.join(known)}.")
    return found


def endure(
    names: Sequence[str],
    files: int,
    folder: Path,
    seed: str = "files",
    tell: Callable[[str, int], None] = lambda name, done: None,
) -> list[Count]:
    """Feed ``files`` mutated files to each of the named readers, in a process of its own.

    A reader must use a file or refuse it with a sentence, within the limits of time and memory.

    Raises:
        CheckFailed: at the first failure; the mutated files stay in ``folder``.
    """
    counts = [Count(name) for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", __name__, str(folder), seed, str(files), *names]
    errors = folder / "stderr"
    with (
        errors.open("wb") as written,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=written, env=_environment()) as process,
    ):
        assert process.stdout is not None
        try:
            for count in counts:
                while count.files < files:
                    ready, _, _ = select.select([process.stdout], [], [], IDLE_LIMIT_S)
                    require(ready, f"Reading takes more than {IDLE_LIMIT_S} s: {count.name} in {folder}")
                    line = process.stdout.readline()
                    require(line, f"The process ended: {count.name} in {folder} ({_last_line(errors)})")
                    _add(count, json.loads(line), folder)
                    tell(count.name, count.files)
        finally:
            process.kill()
    return counts


def _environment() -> dict[str, str]:
    # One thread each: with more, address space depends on the number of cores.
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _add(count: Count, result: dict[str, Any], folder: Path) -> None:
    count.files += 1
    count.used += result["outcome"] == "used"
    count.refused += result["outcome"] == "refused"
    count.peak_bytes = max(count.peak_bytes, result["peak"])
    require(
        result["outcome"] in ("used", "refused"),
        f"{count.name}: {result['mutation']} in {folder} raised {result['outcome']}",
    )
    require(
        result["peak"] <= MAX_MEMORY_RATIO * result["size"] + MEMORY_SLACK_BYTES,
        f"{count.name}: {result['mutation']} in {folder} took {result['peak']:,} bytes",
    )


def _last_line(errors: Path) -> str:
    lines = errors.read_text(errors="replace").split("\n")
    return " | ".join(line.strip() for line in lines[-60:] if line.strip())[:2_000]


# Everything below runs in the process with limits.


def _work(folder: Path, seed: str, files: int, names: Sequence[str]) -> None:
    from tqchat.engine import backend
    from tqchat.lab.endure.readers import READERS

    backend.prepare()
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no result
    readers = [next(reader for reader in READERS if reader.name == name) for name in names]
    formats = [_prepare(reader, folder) for reader in readers]
    _limit()
    for reader, found in zip(readers, formats, strict=True):
        _read_mutated(reader, folder / reader.name.replace(" ", "-"), found, seed, files, results)
    os._exit(0)  # MLX's threads may not end in order


def _prepare(reader: Reader, folder: Path) -> dict[Path, Format]:
    """Write the intact files and read them once, which also loads libraries before the limits apply."""
    intact = folder / reader.name.replace(" ", "-") / "intact"
    intact.mkdir(parents=True)
    formats = {file.relative_to(intact): form for file, form in reader.prepare(intact).items()}
    case = intact.with_name("case")
    shutil.copytree(intact, case)
    reader.read(case)
    return formats


def _read_mutated(
    reader: Reader, folder: Path, formats: Mapping[Path, Format], seed: str, count: int, results: TextIO
) -> None:
    intact, case = folder / "intact", folder / "case"
    for index in range(count):
        rng = random.Random(f"{seed} {reader.name} {index}")
        shutil.rmtree(case)
        shutil.copytree(intact, case)
        files = rng.sample(list(formats), min(rng.choice((1, 1, 1, 1, 2, 3)), len(formats)))
        mutation = f"{', '.join(map(str, files))} of mutation {index}"
        for file in files:
            _mutate(rng, case / file, formats[file])
        size = sum(path.lstat().st_blocks << 9 for path in case.rglob("*"))
        before = _start_measuring()
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
        try:
            reader.read(case)
            outcome = "used"
        except CheckFailed as error:
            outcome = f"a failed check: {error}"
        except TqchatError as error:
            outcome = "refused"
            if "\n" in str(error) or len(str(error)) > 5_000:
                outcome = f"no sentence: {str(error)[:200]!r}"
        except BaseException as error:
            import traceback

            outcome = "".join(traceback.format_exception(error))[-1_500:]
        signal.setitimer(signal.ITIMER_PROF, 0)
        peak = max(_peak_bytes() - before, 0)
        results.write(
            json.dumps({"outcome": outcome, "mutation": mutation, "size": size, "peak": peak}) + "\n"
        )
        if outcome not in ("used", "refused"):
            os._exit(1)


def _mutate(rng: random.Random, file: Path, form: Format) -> None:
    from tqchat.lab.endure import content

    if rng.random() >= _SPECIAL_SHARE:
        file.write_bytes(content.mutate(rng, file.read_bytes(), form))
        return
    if rng.random() < 0.3:
        os.truncate(file, _SPARSE_BYTES)
        return
    file.unlink()
    kind = rng.choice(("pipe", "socket", "folder", "full folder", "loop", "device", "folder link", "missing"))
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "socket":
            _make_socket(file)
        case "folder":
            file.mkdir()
        case "full folder":
            (file / file.name / "x").mkdir(parents=True)
        case "loop":
            file.symlink_to(file)
        case "device":
            file.symlink_to(rng.choice(("/dev/zero", "/dev/full", "/dev/null", "/dev/tty", "/dev/stdin")))
        case "folder link":
            file.symlink_to(rng.choice((file.parent, Path("/"), Path("/nosuch"))))


def _make_socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        # A relative name: that of a socket is limited to about a hundred bytes.
        folder = os.open(".", os.O_RDONLY)
        try:
            os.chdir(file.parent)
            made.bind(file.name)
        finally:
            os.fchdir(folder)
            os.close(folder)


def _limit() -> None:
    faulthandler.register(signal.SIGPROF, chain=True)  # says where the time went, then ends the process
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ADDRESS_SPACE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _start_measuring() -> int:
    """Reset the peak of resident memory; returns what is resident now. Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS:")


def _peak_bytes() -> int:
    return _status_bytes("VmHWM:")


def _status_bytes(key: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    _work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
