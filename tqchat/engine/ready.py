"""Importing this makes MLX ready: modules that import MLX import this first.

MLX keeps the BLAS that it finds when it is loaded, and the one that it brings along is 20 times slower.
"""

from __future__ import annotations

from tqchat.engine import backend

backend.prepare()
