from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import STARTER_FOLDER
from tqchat.engine import backend

REPLY_SCRIPT = """
import json, sys
from tqchat.engine import backend
assert "mlx.core" not in sys.modules
found = backend.prepare()
from tqchat.engine import models
from tqchat.engine.commands import ChatMessage, Sampling
from tqchat.engine.session import Session
session = Session(models.load(sys.argv[1]), "turbo0v4")
texts = []
for sampling in (Sampling(temperature=0), Sampling(temperature=0.7, top_p=0.9, top_k=20, min_p=0.05, seed=1)):
    *_, done = session.send([ChatMessage("user", "Hello! My name is Ada.")], sampling)
    texts.append(done.text)
print(json.dumps(texts))
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )


def test_decoding_needs_no_compiler_and_leaves_no_compiled_files(tmp_path: Path) -> None:
    without = run(REPLY_SCRIPT, str(STARTER_FOLDER), PATH=str(tmp_path), TMPDIR=str(tmp_path))
    assert without.returncode == 0, without.stderr
    assert all(json.loads(without.stdout))
    with_one = run(REPLY_SCRIPT, str(STARTER_FOLDER), TMPDIR=str(tmp_path))
    assert with_one.stdout == without.stdout
    if backend.prepare().name == "cpu":
        assert not list(tmp_path.rglob("*.so"))


def test_prepare_describes_the_device() -> None:
    found = backend.prepare()
    assert found is backend.prepare()
    assert found.name in ("metal", "cuda", "cpu")
    assert found.device
    assert found.memory_bytes > 1 << 30
    assert found.mlx_version.split(".")[0].isdigit()
    assert found.mlx_lm_version.split(".")[0].isdigit()
    assert 0 < backend.available_memory() <= found.memory_bytes
    if found.name == "cpu" and sys.platform == "linux":
        assert (found.blas is None) == any("OpenBLAS" in advice for advice in found.advice)


def test_matrices_are_multiplied_by_openblas() -> None:
    if backend.prepare().blas is None:
        pytest.skip("OpenBLAS is not installed")
    if sys.platform != "linux":
        pytest.skip("glibc's linker says what it binds to what")
    code = (
        "from tqchat.engine import backend; backend.prepare()\n"
        "import mlx.core as mx; a = mx.ones((64, 64)); mx.eval(a @ a)"
    )
    said = run(code, LD_DEBUG="bindings").stderr
    bound = re.findall(r"binding file \S*/libmlx\S* \[0\] to (\S+) \[0\]: normal symbol `cblas_sgemm'", said)
    assert bound and all("openblas" in library for library in bound)


def test_idle_blas_threads_do_not_spin_on_few_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if backend.prepare().blas is None or not 1 < cores <= backend.FEW_CORES:
        pytest.skip("only where OpenBLAS has more than one core, and few")
    # What OpenBLAS reads when it is loaded: for how long an idle thread spins, as a power of two of cycles.
    code = (
        "import ctypes; loading = ctypes.CDLL\n"
        "def load(name, *mode, **modes):\n"
        "    getenv = loading(None).getenv; getenv.restype = ctypes.c_char_p\n"
        "    if name and 'openblas' in name: print(getenv(b'OPENBLAS_THREAD_TIMEOUT').decode())\n"
        "    return loading(name, *mode, **modes)\n"
        "ctypes.CDLL = load\n"
        "from tqchat.engine import backend; backend.prepare()"
    )
    monkeypatch.delenv("OPENBLAS_THREAD_TIMEOUT", raising=False)  # this process has set it for itself
    assert run(code).stdout.split()[0] == "4"
    kept = run(code, OPENBLAS_THREAD_TIMEOUT="26").stdout.split()
    assert kept[0] == "26", "a setting from outside is kept"


def test_mlx_without_a_backend_names_the_extra_to_install(tmp_path: Path) -> None:
    package = tmp_path / "mlx"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "core.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')\n")
    code = (
        "from tqchat.engine import backend\n"
        "from tqchat.errors import TqchatError\n"
        "try:\n    backend.prepare()\nexcept TqchatError as error:\n    print(error)\n"
    )
    done = run(code, PYTHONPATH=os.pathsep.join([str(tmp_path), str(Path.cwd())]))
    assert "libmlx.so" in done.stdout, done.stderr
    assert "tqchat[cpu]" in done.stdout or sys.platform == "darwin"
    assert done.stdout.count("\n") == 1


def test_events_commands_and_worker_do_not_import_mlx() -> None:
    code = (
        "import sys, tqchat.engine, tqchat.engine.events, tqchat.engine.commands, tqchat.engine.worker\n"
        "import tqchat.store.vault\n"
        "bad = {'mlx', 'mlx_lm', 'transformers', 'numpy', 'huggingface_hub', 'textual'} & set(sys.modules)\n"
        "sys.exit(', '.join(bad) or 0)"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
