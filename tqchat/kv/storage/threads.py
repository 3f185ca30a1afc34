"""Which thread made a lazy array: MLX evaluates it on that thread only."""

from __future__ import annotations

import threading

_local = threading.local()


def thread_key() -> object:
    """An object of the calling thread. Unlike an identifier it is not given to a later thread."""
    try:
        key: object = _local.key
    except AttributeError:
        key = _local.key = object()
    return key
