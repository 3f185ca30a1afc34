"""Prepares MLX on import. Modules that import MLX import this first.

MLX binds to the BLAS that is loaded at that time; its own is 20 times slower than OpenBLAS.
"""

from __future__ import annotations

from tqchat.engine import backend

backend.prepare()
