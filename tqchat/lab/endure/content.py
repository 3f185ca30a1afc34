"""Random damage of a file's content: bytes, encodings, and the structure of JSON, TOML and safetensors."""

from __future__ import annotations

import json
import random
import struct
import tomllib
from collections.abc import Callable
from typing import Any, Literal

import tomli_w

Format = Literal["json", "toml", "safetensors", "text", "binary"]

_PLACE = "@@mutant@@"
_LARGE = 20_000
"""Length of long texts and numbers."""
_DEEP = 3_000

_JSON_VALUES = (
    "null", "true", "false", "0", "1", "2", "3", "7", "-1", "0.5", "100", "65536", "1e9", "1000000000",
    "4294967296", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "1e308", "1e400",
    "-1e400", "NaN", "Infinity", "-Infinity", "9" * 5_000, "-" + "9" * 5_000, '""', '"x"', '"0"', '"-1"',
    '"' + "x" * _LARGE + '"', '"\\u0000"', '"\\ud800"', '"\\u001b]52;c;eA==\\u0007"', '"../../x"',
    '"~nosuch/x"', '"/dev/zero"', "[]", "{}", "[[]]", "[null]", '[""]', "[0, -1]", '{"a": 1}', '{"": {}}',
    "[" * _DEEP + "]" * _DEEP, '{"a":' * _DEEP + "1" + "}" * _DEEP, "[0" + ",0" * _LARGE + "]",
)  # fmt: skip
_TOML_VALUES = (
    "true", "false", "0", "1", "2", "-1", "0.5", "1_000_000_000", "9223372036854775807",
    "9223372036854775808", "1e308", "1e400", "nan", "inf", "-inf", "9" * 5_000, "0x" + "f" * 5_000,
    '""', '"x"', "'~nosuch/x'",
    '"' + "x" * _LARGE + '"', '"\\u0000"', '"\\u001b]52;c;eA==\\u0007"', "[]", "{}", "[[]]", "[1, 'a']",
    "2026-11-25", "2026-02-31", "25:00:00", "{a = 1}", "[" * _DEEP + "]" * _DEEP,
    "{a=" * 500 + "1" + "}" * 500, '"auto"', '"#fff 50%"', '"bold not"', '"none"', '"ansi_red"',
    '"/dev/zero"',
)  # fmt: skip


def mutate(rng: random.Random, content: bytes, form: Format) -> bytes:
    """A random damage of an intact file: of its structure if it has one, of its bytes, or of both."""
    structured = {"json": _json, "toml": _toml, "safetensors": _safetensors}.get(form)
    if structured is not None and rng.random() < 0.65:
        content = structured(rng, content)
        if rng.random() < 0.8:
            return content
    for _ in range(rng.choice((1, 1, 1, 3))):
        content = rng.choice(_BYTES)(rng, content)
    return content


def _json(rng: random.Random, content: bytes) -> bytes:
    table = json.loads(content)
    raw = _change(rng, table, _JSON_VALUES)
    text = json.dumps(table)
    if rng.random() < 0.05:  # a key twice
        text = text.replace("{", '{"a": 1, "a": 2, ', 1)
    return text.replace(f'"{_PLACE}"', raw).encode(errors="surrogatepass")


def _toml(rng: random.Random, content: bytes) -> bytes:
    table = tomllib.loads(content.decode())
    raw = _change(rng, table, _TOML_VALUES)
    text = tomli_w.dumps(table)
    if rng.random() < 0.05:
        text += text
    return text.replace(f'"{_PLACE}"', raw).encode()


def _safetensors(rng: random.Random, content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    if rng.random() < 0.2:
        length = rng.choice(
            (0, 1, len(content), 1 << 31, 1 << 40, 1 << 63, (1 << 64) - 1, rng.randrange(length))
        )
        return struct.pack("<Q", length) + content[8:]
    header = _json(rng, content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _change(rng: random.Random, table: Any, values: tuple[str, ...]) -> str:
    """Change a value, a key or the order somewhere below a table; the text to put at ``_PLACE``."""
    holder, key = rng.choice(list(places(table)))
    action = rng.random()
    if action < 0.75:
        holder[key] = _PLACE
    elif action < 0.85:
        del holder[key]
    elif isinstance(holder, dict) and action < 0.95:
        name = rng.choice(("", "x" * 300, "\x1b[0m", "unknown", str(key).upper(), "__class__", "a.b"))
        holder[name] = holder.pop(key) if rng.random() < 0.5 else _PLACE
    else:
        other, name = rng.choice(list(places(table)))
        if other is holder:
            holder[key], other[name] = other[name], holder[key]
        else:
            holder[key] = _PLACE
    return rng.choice(values)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) pair in nested lists and objects; of a long list the first and last few."""
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    if len(keys) > 200:
        keys = keys[:20] + keys[-20:]
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += places(value[key])
    return found


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 1, 2, 30))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_near_the_start(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content or b"\0")
    changed[rng.randrange(min(len(changed), 200))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.choice((0, 1, 7, 8, 9, rng.randrange(len(content) + 1)))]


def _splice(rng: random.Random, content: bytes) -> bytes:
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[start:end] + content[at:]


def _drop(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.choice((1, 4, 50)) :]


def _insert(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    texts = (
        b"\0",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\x1b]0;x\x07",
        b"[" * _DEEP,
        b"{" * _DEEP,
        b'"',
        b"9" * 5_000,
    )
    piece = rng.choice((*texts, b"\n" * 100, rng.randbytes(rng.randrange(1, 3_000))))
    return content[:at] + piece + content[at:]


def _other_encoding(rng: random.Random, content: bytes) -> bytes:
    text = content.decode("latin-1")
    return rng.choice(
        (
            b"\xef\xbb\xbf" + content,
            text.encode("utf-16"),
            text.encode("utf-32"),
            content.replace(b"\n", b"\r"),
        )
    )


def _noise(rng: random.Random, content: bytes) -> bytes:
    return rng.choice((b"", bytes(100), rng.randbytes(rng.randrange(1, 5_000)), b"a." * 50_000 + b"a = 1"))


_BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flip,
    _flip,
    _flip_near_the_start,
    _cut,
    _splice,
    _drop,
    _insert,
    _other_encoding,
    _noise,
)
