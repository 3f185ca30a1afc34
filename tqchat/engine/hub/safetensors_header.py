"""Checks a safetensors file by its header, before MLX maps it."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from tqchat.engine.hub.model_errors import NotAModel

MAX_HEADER_BYTES = 256 << 20
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64,
    "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
}  # fmt: skip
_MAX_TENSORS = 1_000_000


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Header of a safetensors file: tensor name to ``dtype``, ``shape`` and ``data_offsets``, all checked.

    Raises:
        NotAModel: if the file is no regular one, unreadable, damaged, or not as long as its header states.
    """
    if not path.is_file():
        raise NotAModel(f"{path} is no regular file: download or copy the model again.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if length > size - 8:
                raise NotAModel(f"The weights in {path} are cut short: download or copy them again.")
            if length > MAX_HEADER_BYTES:
                raise _damaged(path)
            header = json.loads(file.read(length))
    except OSError as error:
        raise NotAModel(f"The weights in {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(header, dict) or len(header) > _MAX_TENSORS:
        raise _damaged(path)
    header.pop("__metadata__", None)
    end = 0
    for entry in header.values():
        if not _is_tensor(entry):
            raise _damaged(path)
        end = max(end, entry["data_offsets"][1])
    expected = 8 + length + end
    if size != expected:
        raise NotAModel(
            f"The weights in {path} are {'cut short' if size < expected else 'damaged'} "
            f"({size:,} of {expected:,} bytes): download or copy them again."
        )
    return header


def check(path: Path) -> set[str]:
    """Check a weight file; returns the dtypes in it.

    Raises:
        NotAModel: as ``read``.
    """
    return {entry["dtype"] for entry in read(path).values()}


def _is_tensor(entry: Any) -> bool:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            counts = (*shape, begin, end)
            if not all(type(count) is int and 0 <= count < 1 << 50 for count in counts) or len(shape) > 16:
                return False
            bits = _BITS.get(dtype)
            return begin <= end and (bits is None or math.prod(shape) * bits // 8 == end - begin)
    return False


def _damaged(path: Path) -> NotAModel:
    return NotAModel(f"The weights in {path} are damaged: download or copy them again.")
