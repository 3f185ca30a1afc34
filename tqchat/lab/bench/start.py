"""Start-up time: imports, module by module, and the first paint."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

from tqchat.lab.bench import timing
from tqchat.lab.bench.results import BenchRow

MODULES = (
    "tqchat.cli",
    "tqchat.ui.app",
    "tqchat.engine.prepare_mlx",
    "tqchat.engine.session",
    "tqchat.engine.models",
)
"""Timed imports: command line, app, MLX, session, models."""

MAX_IMPORT_ROWS = 8
"""Packages listed in the ``import`` table, slowest first."""

_PAINT = """
import asyncio, sys, tempfile
from pathlib import Path
from tqchat.paths import Paths
from tqchat.settings import Settings
from tqchat.ui.app import TqchatApp

class Silent:
    def start(self): pass
    def submit(self, command): pass
    def stop(self): pass
    def cancel_download(self): pass
    def shutdown(self, timeout=0.0): pass

async def main():
    with tempfile.TemporaryDirectory() as home:
        paths = Paths(*(Path(home) / name for name in ("config", "state", "data", "cache", "log")))
        paths.ensure()
        app = TqchatApp(paths, Settings(), engine=lambda say: Silent())
        async with app.run_test(size=(120, 40)):
            print("mlx" if "mlx.core" in sys.modules else "painted", flush=True)
            app.exit()

asyncio.run(main())
"""


def start(rounds: int, tell: Callable[[str], None]) -> Iterator[BenchRow]:
    """Time fresh interpreters; the first row is an empty one."""
    programs = {"python": "pass", **{f"import {name}": f"import {name}" for name in MODULES}}
    runs: dict[str, Callable[[], float]] = {
        name: partial(_time_python, code) for name, code in programs.items()
    }
    runs["first paint"] = _time_first_paint
    times = timing.time_interleaved(runs, rounds, lambda name: tell(f"start, {name}"))
    for name, own in times.items():
        yield BenchRow("start", name, 0, median(own), timing.spread(own))
    tell("start, module by module")
    for name, seconds in _slowest_imports("tqchat.ui.app"):
        yield BenchRow("import", name, 0, seconds, 0.0)


def _time_python(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - began


def _time_first_paint() -> float:
    """Seconds until the first paint.

    Raises:
        RuntimeError: if the app failed, or loaded MLX before it.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", _PAINT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with process:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        seconds = time.perf_counter() - began
        process.wait()
    if said != "painted":
        raise RuntimeError(f"The screen was not drawn without MLX: {said or 'it failed'}.")
    return seconds


def _slowest_imports(module: str) -> list[tuple[str, float]]:
    """Packages by seconds spent importing their own modules, slowest first."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    lines = re.findall(r"import time:\s+(\d+) \|\s+(\d+) \| +(\S+)", report)
    own: dict[str, float] = {}
    for alone, _, name in lines:
        package = name.split(".")[0] if not name.startswith("tqchat") else ".".join(name.split(".")[:2])
        own[package] = own.get(package, 0.0) + int(alone) / 1e6
    return sorted(own.items(), key=lambda item: -item[1])[:MAX_IMPORT_ROWS]
