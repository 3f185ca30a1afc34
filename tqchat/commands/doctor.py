"""``tqchat doctor``: checks the installation, suggests what would make it faster, or prints a report."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from tqchat import __version__, paths
from tqchat.commands.checks import settings_in_force
from tqchat.commands.conversations.reading import open_for_reading
from tqchat.commands.locate import locations, table
from tqchat.engine.commands import NO_ADAPTER
from tqchat.errors import TqchatError
from tqchat.text import single_line
from tqchat.units import size

UNUSABLE = "problem, see below"
"""Shown in a row whose value could not be determined."""
LIBRARIES = ("mlx", "mlx-lm", "textual", "transformers", "huggingface_hub")
REPORT_TOKENS = 512
"""Tokens in the caches of the report's benchmark: read in seconds on a slow CPU."""

_PATH = re.compile(r"(?:~|[A-Za-z]:)?(?:[/\\\\][^\s/\\\\:;,'\"()]+){2,}")
T = TypeVar("T")


def main(report: bool = False) -> int:
    """Print the findings; returns 1 if there are problems that must be fixed.

    Args:
        report: Print a block for a bug report instead: no names or paths of the user.
    """
    from tqchat.engine import backend

    if report:
        return _report()

    places = paths.locate()
    problems: list[str] = []
    rows = [
        ("tqchat", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]
    advice: tuple[str, ...] = ()
    try:
        found = backend.prepare()
    except TqchatError as error:
        problems.append(str(error))
    else:
        advice = found.advice
        absent = "none found" if found.name == "cpu" else "not needed"
        rows += [
            ("mlx", f"{found.mlx_version}, mlx-lm {found.mlx_lm_version}"),
            ("backend", found.name),
            ("device", found.device),
            ("memory", size(found.memory_bytes)),
            ("blas", found.blas or absent),
            ("kernels", _kernels()),
        ]
    user_settings, wrong = settings_in_force(places)
    problems += wrong
    rows += [
        ("model", _collect_problem(lambda: _model(user_settings.model), problems) or UNUSABLE),
    ]
    place = user_settings.adapter
    if place is not None and place != NO_ADAPTER:
        rows.append(("adapter", _collect_problem(lambda: _adapter(place), problems) or UNUSABLE))
    rows += [
        ("scheme", user_settings.scheme),
        ("chats", _collect_problem(lambda: _conversations(places.database), problems) or UNUSABLE),
    ]
    _print_section(table(rows))
    _print_section(table(_collect_problem(locations, problems) or [("locations", places.data_dir)]))
    for title, lines in (("Problems to fix:", problems), ("For more speed:", advice)):
        if lines:
            _print_section("\n".join([title, *(f"  - {single_line(line)}" for line in lines)]))
    return 1 if problems else 0


def _report() -> int:
    """Print versions, device and a short benchmark as one block of Markdown."""
    from tqchat.engine import backend

    found = backend.prepare()
    rows = [
        ("tqchat", __version__),
        ("python", f"{platform.python_version()}, {platform.python_implementation()}"),
        ("system", _system()),
        *((name, metadata.version(name)) for name in LIBRARIES),
        ("backend", found.name),
        ("device", found.device),
        ("memory", f"{size(found.memory_bytes)}, {size(backend.available_memory())} free"),
        ("blas", Path(found.blas).name if found.blas else "none"),
        ("kernels", _kernels()),
    ]
    measured = _without_paths(_benchmark())
    _print_section(f"```\n{_without_paths(table(rows))}\n```\n\n{measured}")
    return 0


def _system() -> str:
    try:
        release = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        release = f"{platform.system()} {platform.mac_ver()[0]}".rstrip()
    return f"{release}, {platform.machine()}"


def _benchmark() -> str:
    """Decoding with the bundled model under FP16 and under ``turbo4``, as a Markdown table."""
    from tqchat.commands.measuring import Progress
    from tqchat.engine import models
    from tqchat.lab.bench import kv_caches, machine, run
    from tqchat.lab.bench.results import BenchResults, tables

    progress = Progress()
    notes: list[str] = []

    def leave_out(name: str, error: Exception) -> None:
        notes.append(f"{name} was left out: {single_line(str(error))}.")

    try:
        model = models.load()
        wanted = [
            one for one in kv_caches.candidates("turbo4") if one.name in (kv_caches.REFERENCE, "turbo4")
        ]
        plan = run.Plan(["decode"], wanted, [REPORT_TOKENS], 3, run.layer_of(model))
        rows = tuple(run.rows(model, plan, progress.note, leave_out))
        copied = machine.copy_bandwidth()
    except (TqchatError, RuntimeError) as error:  # MLX raises the latter
        return f"The benchmark failed: {single_line(str(error))}"
    finally:
        progress.end()
    return "\n".join([tables(BenchResults(machine.device(), model.info.name, copied, rows)), *notes])


def _without_paths(text: str) -> str:
    return _PATH.sub("(path)", text)


def _kernels() -> str:
    """Result of comparing the fused kernels with plain operations on a few tokens."""
    from tqchat.kv.kernels.probe import probe

    return probe()


def _model(ref: str | None) -> str:
    from tqchat.engine.commands import model_ref
    from tqchat.engine.hub import model_folder
    from tqchat.engine.hub.resolve import local_folder

    name = model_ref(ref)
    folder = local_folder(ref)
    if folder is None:
        return f"{name}, will be downloaded at first use"
    config = model_folder.check(folder)
    return f"{name} ({config['model_type']})"


def _adapter(place: str) -> str:
    from tqchat.engine.models import adapters

    found = adapters.find(place)
    return f"{found.folder} (trained for {found.base})" if found.base else str(found.folder)


def _conversations(file: Path) -> str:
    if not file.exists():
        return "none yet"
    with open_for_reading(file) as database:
        count = len(database.conversations())
    return f"{count} conversation{'' if count == 1 else 's'}"


def _collect_problem(look: Callable[[], T], problems: list[str]) -> T | None:
    try:
        return look()
    except TqchatError as error:
        problems.append(str(error))
        return None


def _print_section(text: str) -> None:
    sys.stdout.write(f"{text}\n\n")
