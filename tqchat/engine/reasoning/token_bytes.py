"""The bytes of single tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """The bytes that a token adds to a text; none for an id that the tokenizer lacks."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend = getattr(getattr(tokenizer, "_tokenizer", tokenizer), "backend_tokenizer", None)
        self._is_byte_level = "ByteLevel" in repr(getattr(backend, "decoder", None))

    def __call__(self, token: int) -> bytes:
        try:
            piece = self._tokenizer.convert_ids_to_tokens(token)
        except (IndexError, KeyError, OverflowError, ValueError, TypeError):
            return b""
        if isinstance(piece, bytes):
            return piece
        if piece is None:
            return b""
        if (byte := _BYTE.fullmatch(piece)) is not None:
            return bytes([int(byte[1], 16)])
        alphabet = _byte_alphabet()
        if self._is_byte_level and all(character in alphabet for character in piece):
            return bytes(alphabet[character] for character in piece)
        return str(piece).replace("▁", " ").encode("utf-8", "replace")


@cache
def _byte_alphabet() -> Mapping[str, int]:
    """Characters by which byte-level vocabularies write bytes.

    Source: GPT-2, https://github.com/openai/gpt-2/blob/master/src/encoder.py.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
