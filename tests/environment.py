"""Environment variables that must be set before MLX is imported; ``conftest`` imports this first."""

from __future__ import annotations

import os

# Tests run in two workers on two cores; more BLAS threads only compete.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# On CUDA, MLX uses TF32 for float32 matrices by default; tests compare at float32 precision.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
# Network access in a test is a mistake and must fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"

from tqchat.engine import backend

backend.prepare()
