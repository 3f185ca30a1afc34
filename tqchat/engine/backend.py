"""Getting MLX ready on this machine. Call ``prepare()`` before anything imports ``mlx``."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tqchat.errors import TqchatError

_BLAS_NAMES = (
    "libopenblas.so.0",
    "libopenblas.so",
    "libopenblasp.so.0",
    "libopenblaso.so.0",
)
_BLAS_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu/openblas-pthread",
    "/usr/lib/aarch64-linux-gnu/openblas-pthread",
    "/usr/local/lib",
    "/opt/OpenBLAS/lib",
    "/home/linuxbrew/.linuxbrew/lib",
)
FEW_CORES = 2
"""With no more than these, OpenBLAS's idle threads are in the way of those that have work; with four not."""

_lock = threading.Lock()
_prepared: Backend | None = None


class BackendMissing(TqchatError):
    """MLX cannot be imported here."""


@dataclass(frozen=True)
class Backend:
    """What computes on this machine.

    ``blas`` is looked for where the CPU backend needs it; ``None`` means not found there, or not needed.
    ``memory_bytes`` is all that the device can use. ``advice`` are sentences: what would make
    it faster.
    """

    name: Literal["metal", "cuda", "cpu"]
    device: str
    blas: str | None
    memory_bytes: int
    mlx_version: str
    mlx_lm_version: str
    advice: tuple[str, ...]


def prepare() -> Backend:
    """Load what makes MLX fast, import it, and say what was found. Later calls return the same.

    The CPU backend on Linux comes with a reference BLAS, 20 times slower at reading prompts than OpenBLAS,
    whose symbols win if it is loaded first. Its operations are left unfused, at no measurable cost: to fuse
    them it starts a C++ compiler, which writes to one folder of temporary files for all processes and users.
    A process that loads what another is still writing, or was killed writing, fails from then on.

    Raises:
        BackendMissing: if MLX is not installed, or without a backend for this machine.
    """
    global _prepared
    with _lock:
        if _prepared is None:
            _prepared = _prepare()
        return _prepared


def available_memory() -> int:
    """Bytes that can be allocated now without pushing other programs out."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, _container_free())
    except (OSError, ValueError, IndexError):
        pass
    return min(_total_memory() // 2, _container_free())


def _prepare() -> Backend:
    # Once MLX is loaded it keeps the BLAS that it found.
    too_late = "mlx.core" in sys.modules
    on_cpu = sys.platform == "linux" and not _has_cuda_wheel()
    blas = _load_openblas() if on_cpu and not too_late else None
    mx = _import_mlx()
    name = _backend_name(mx)
    advice: list[str] = []
    if name == "cpu":
        mx.disable_compile()
        if too_late:
            advice.append("Import tqchat.engine before MLX, so that it can load OpenBLAS first.")
        elif sys.platform == "linux" and blas is None:
            advice.append(
                "Install OpenBLAS (`sudo apt install libopenblas0`, `sudo dnf install openblas`): "
                "prompts are read about 20 times faster."
            )
        if sys.platform == "linux" and Path("/proc/driver/nvidia").exists():
            advice.append("Install the CUDA backend (`pip install 'tqchat[cuda]'`) to use the NVIDIA card.")
        if sys.platform == "darwin":
            advice.append(
                "Use macOS 14 or later on Apple Silicon and a native Python, so that Metal is found."
            )
    if name == "metal":
        _keep_weights_resident(mx)
    device, memory = _device(mx, name)
    return Backend(
        name=name,
        device=device,
        blas=blas,
        memory_bytes=memory,
        mlx_version=metadata.version("mlx"),
        mlx_lm_version=metadata.version("mlx-lm"),
        advice=tuple(advice),
    )


def _has_cuda_wheel() -> bool:
    return any(_installed(f"mlx-cuda{suffix}") for suffix in ("", "-12", "-13"))


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _load_openblas() -> str | None:
    """Make OpenBLAS's symbols the ones that MLX finds; the library's name, or ``None`` if there is none.

    Its threads spin for some 20 ms when they have nothing to do, about as long as a token takes: steps of
    decoding wait for a core. On few cores they are told to sleep at once, 5 to 10 percent faster on two.
    """
    if len(os.sched_getaffinity(0)) <= FEW_CORES:
        os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # 2^4 cycles, the least it takes
    folders = [str(Path(sys.prefix) / "lib"), *_BLAS_FOLDERS]
    candidates = [*_BLAS_NAMES, *(f"{folder}/{name}" for folder in folders for name in _BLAS_NAMES)]
    for candidate in candidates:
        if candidate.startswith("/") and not Path(candidate).exists():
            continue
        try:
            library = ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        if hasattr(library, "cblas_sgemm"):
            return candidate
    return None


def _import_mlx() -> Any:
    try:
        import mlx.core as mx
    except ImportError as error:
        extra = "tqchat" if sys.platform == "darwin" else "tqchat[cpu]"
        card = "" if sys.platform == "darwin" else ", or 'tqchat[cuda]' with an NVIDIA card"
        raise BackendMissing(
            f"MLX cannot be loaded ({_first_line(error)}): run pip install '{extra}'{card}."
        ) from error
    return mx


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _backend_name(mx: Any) -> Literal["metal", "cuda", "cpu"]:
    if mx.default_device().type != mx.DeviceType.gpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def _keep_weights_resident(mx: Any) -> None:
    """Let macOS wire as much memory as it recommends, so that weights are not paged out between replies."""
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if recommended:
        try:
            mx.set_wired_limit(recommended)
        except (RuntimeError, ValueError):
            pass  # before macOS 15 there is no such limit


def _device(mx: Any, name: str) -> tuple[str, int]:
    told: dict[str, Any] = mx.device_info()
    label = str(told.get("device_name") or platform.processor() or platform.machine())
    if name == "cpu":
        return f"{label}, {os.cpu_count() or 1} cores", min(_total_memory(), _container_limit())
    for key in ("max_recommended_working_set_size", "total_memory", "memory_size"):
        if isinstance(told.get(key), int) and told[key] > 0:
            return label, int(told[key])
    return label, _total_memory()


def _total_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 8 << 30


def _container_limit() -> int:
    """The memory that a container allows; very much where there is no limit."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        return 1 << 62


def _container_free() -> int:
    """What is left of it, not counting file pages, which the kernel gives back."""
    try:
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        return max(_container_limit() - int(stat["anon"]), 0)
    except (OSError, ValueError, KeyError):
        return 1 << 62
