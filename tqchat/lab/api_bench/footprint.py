"""Memory of a process, as the system and the driver of an NVIDIA card tell it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

_MIB = 1 << 20


class Footprint:
    """What a process was seen to take.

    Attributes:
        resident_bytes: Its resident memory when it was last looked at.
        peak_bytes: The most there was: as the system counts it on Linux, else when it was looked at.
        device_bytes: The most memory of an NVIDIA card when it was looked at.
    """

    def __init__(self) -> None:
        self.resident_bytes: int | None = None
        self.peak_bytes: int | None = None
        self.device_bytes: int | None = None

    def add(self, pid: int, card_before: int | None) -> None:
        """Look at a process.

        Args:
            card_before: ``card_bytes()`` before it was started.
        """
        self.resident_bytes, peak = resident(pid)
        self.peak_bytes = _most(self.peak_bytes, peak)
        self.device_bytes = _most(self.device_bytes, _on_card(pid, card_before))


def card_bytes() -> int | None:
    """Memory in use on all NVIDIA cards; ``None`` without one."""
    return _sum(_nvidia_smi("--query-gpu=memory.used"))


def _on_card(pid: int, card_before: int | None) -> int | None:
    """GPU memory of a process in bytes.

    In containers the driver may not know its id: then the growth since it was started.
    """
    if card_before is None:
        return None
    own = [used for id, used in _nvidia_smi("--query-compute-apps=pid,used_memory") if id == pid]
    if own:
        return sum(own) * _MIB
    now = card_bytes()
    return None if now is None else max(0, now - card_before)


def _nvidia_smi(query: str) -> list[list[int]]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    told = subprocess.run(command, capture_output=True, text=True).stdout
    lines = (line.split(",") for line in told.splitlines())
    return [[int(cell) for cell in line] for line in lines if all(cell.strip().isdigit() for cell in line)]


def _sum(rows: list[list[int]]) -> int | None:
    return sum(row[0] for row in rows) * _MIB if rows else None


def resident(pid: int) -> tuple[int | None, int | None]:
    """A process's resident bytes, and the most there were so far."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        result = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True)
        resident = int(result.stdout) * 1024 if result.stdout.strip().isdigit() else None
        return resident, resident
    sizes = {name: int(kib) * 1024 for name, kib in re.findall(r"^(VmRSS|VmHWM):\s*(\d+) kB", status, re.M)}
    return sizes.get("VmRSS"), sizes.get("VmHWM")


def _most(first: int | None, second: int | None) -> int | None:
    known = [value for value in (first, second) if value is not None]
    return max(known, default=None)
