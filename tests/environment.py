"""What must be so before MLX is imported; ``conftest`` imports this first."""

from __future__ import annotations

import os

# Two cores, two workers: more threads than that only get into each other's way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# On CUDA, MLX multiplies float32 matrices in TF32 unless told otherwise; tests compare to float32 rounding.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
# A test that reaches for the network is a mistake, and should fail at once rather than wait.
os.environ["HF_HUB_OFFLINE"] = "1"

from tqchat.engine import backend

backend.prepare()
