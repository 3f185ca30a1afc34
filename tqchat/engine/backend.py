"""Prepares MLX on this machine. Call ``prepare()`` before anything imports ``mlx``."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tqchat.errors import TqchatError
from tqchat.paths import UnusableFolder, locate, make_private_folder

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
KERNEL_FOLDER_VARIABLE = "MLX_PTX_CACHE_DIR"
"""MLX's variable for the folder of compiled CUDA kernels."""
FEW_CORES = 2
"""With at most this many cores, OpenBLAS's spinning idle threads slow decoding; with four they do not."""

_lock = threading.Lock()
_prepared: Backend | None = None


MAX_UNUSED_SHARE = 1 / 16
"""Share of a CUDA device's memory that MLX's unused buffers may take between two chunks of a prompt."""


class BackendMissing(TqchatError):
    """MLX cannot be imported here."""


@dataclass(frozen=True)
class Backend:
    """The device and libraries that MLX uses.

    Attributes:
        blas: OpenBLAS library loaded for the CPU backend; ``None`` if not found or not needed.
        memory_bytes: All memory that the device can use.
        advice: Sentences on what would make it faster.
    """

    name: Literal["metal", "cuda", "cpu"]
    device: str
    blas: str | None
    memory_bytes: int
    mlx_version: str
    mlx_lm_version: str
    advice: tuple[str, ...]


def prepare() -> Backend:
    """Load OpenBLAS if needed, import MLX and describe the device. Later calls return the same object.

    The CPU backend on Linux comes with a reference BLAS whose prefill is 20 times slower than with OpenBLAS;
    OpenBLAS takes precedence if it is loaded first. Compilation (``mx.compile``) is disabled on the CPU, at
    no measurable cost: it runs a C++ compiler that writes to one temporary folder for all processes and
    users, and a process that loads an incomplete file there fails from then on.

    Raises:
        BackendMissing: if MLX is not installed, or without a backend for this machine.
    """
    global _prepared
    with _lock:
        if _prepared is None:
            _prepared = _prepare()
        return _prepared


def free_memory() -> int:
    """Bytes that a further model and its cache could take on the device now."""
    machine = prepare()
    if machine.name == "cuda":  # memory of its own, of which other programs' use is unknown
        return max(0, machine.memory_bytes - int(_import_mlx().get_active_memory()))
    return min(machine.memory_bytes, available_memory())


def available_memory() -> int:
    """Bytes that can be allocated now without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, _container_free())
    except (OSError, ValueError, IndexError):
        pass
    return min(_total_memory() // 2, _container_free())


def _prepare() -> Backend:
    # MLX stays bound to the BLAS that was loaded when it was imported.
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
    if name == "cuda":
        _keep_kernels(mx)
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
    """Load OpenBLAS with global symbols, so that MLX binds to it. Returns its name if found.

    Its idle threads spin for some 20 ms, about the time of one token, and take cores from decoding. On few
    cores they are set to sleep at once: 5 to 10 percent faster on two.
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


def _keep_kernels(mx: Any) -> None:
    """Let MLX keep compiled kernels in the user's cache folder, not in one for temporary files.

    That one is emptied at a restart of the machine, and others could put code there. The compiled code is of
    one architecture.
    """
    architecture = str(mx.device_info().get("architecture", "unknown"))
    folder = locate().cache_dir / "kernels" / f"mlx-{metadata.version('mlx')}-{architecture}"
    with suppress(UnusableFolder):
        make_private_folder(folder)
        os.environ.setdefault(KERNEL_FOLDER_VARIABLE, str(folder))


def release_buffers() -> None:
    """Release MLX's unused buffers; on CUDA, where taking memory anew is slow, only what exceeds a limit."""
    mx, machine = _import_mlx(), prepare()
    if machine.name != "cuda" or mx.get_cache_memory() > machine.memory_bytes * MAX_UNUSED_SHARE:
        mx.clear_cache()


def _device(mx: Any, name: str) -> tuple[str, int]:
    info: dict[str, Any] = mx.device_info()
    label = str(info.get("device_name") or platform.processor() or platform.machine())
    if name == "cpu":
        return f"{label}, {os.cpu_count() or 1} cores", min(_total_memory(), _container_limit())
    for key in ("max_recommended_working_set_size", "total_memory", "memory_size"):
        if isinstance(info.get(key), int) and info[key] > 0:
            return label, int(info[key])
    return label, _total_memory()


def _total_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 8 << 30


def _container_limit() -> int:
    """Memory limit of the container (cgroup); 2^62 without one."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        return 1 << 62


def _container_free() -> int:
    """Free part of that limit. Page cache counts as free, since the kernel reclaims it."""
    try:
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        return max(_container_limit() - int(stat["anon"]), 0)
    except (OSError, ValueError, KeyError):
        return 1 << 62
