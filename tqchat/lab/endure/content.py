"""Random damage of a file's content: bytes, encodings, and the structure of JSON, TOML and safetensors."""

from __future__ import annotations

import copy
import gzip
import json
import random
import re
import struct
import tomllib
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Literal

import tomli_w

Format = Literal["json", "toml", "safetensors", "text", "binary"]

_PLACE = "@@mutant{}@@"
_LARGE = 20_000
"""Length of long texts and numbers."""
_DEEP = 3_000

_JSON_VALUES = (
    "null", "true", "false", "0", "1", "2", "3", "7", "-1", "-0", "-0.0", "0.5", "100", "65536", "1e9",
    "1000000000", "4294967296", "9223372036854775807", "9223372036854775808", "-9223372036854775809",
    "1e308", "1e400", "-1e400", "1e-400", "5e-324", "1E+999999999999", "0e999999999999", "1.0",
    "NaN", "Infinity", "-Infinity", "9" * 5_000, "-" + "9" * 5_000, "0." + "9" * 5_000, "9" * 4_300,
    "[" + "9" * 400 + "]", '""', '" "', '"x"', '"0"', '"-1"', '"1e999"', '"nan"', '"\u00b2"',
    '"\u0663"', '"1_0"', '"0x10"', '"' + "9" * 5_000 + '"', '"true"', '"null"', '"auto"', '"%s%n{}{0}"',
    '"' + "x" * _LARGE + '"', '"' + "\u4e2d" * _LARGE + '"', '"' + "\n" * _LARGE + '"', '"\u0000"',
    '"\ud800"', '"\udc00\ud800"', '["\ud800"]', '{"\ud800": "\ud800"}', '"\ufeff"', '"\u202e"',
    '"\u001b]52;c;eA==\u0007"', '"../../x"', '"/"', '"."', '".."', '"' + "a/" * 2_000 + '"',
    '"~nosuch/x"', '"/dev/zero"', '"https://[x"', '"2024-13-45T99:99:99Z"', '"0001-01-01T00:00:00+14:00"',
    '"9999-12-31T23:59:59-14:00"', "253402300800", "-62135596801", "1e18",
    "[]", "{}", "[[]]", "[null]", '[""]', "[0, -1]", '[{}]', '[[null]]', '{"a": 1}', '{"": {}}',
    '{"0": null}', '{"__class__": "x"}', '{"a": 1, "a": []}', "[1, \"a\", null, {}, []]",
    "[" * _DEEP + "]" * _DEEP, '{"a":' * _DEEP + "1" + "}" * _DEEP, "[" * 90 + "]" * 90,
    '[{"a":' * 300 + "1" + "}]" * 300, "[0" + ",0" * _LARGE + "]", "[{}" + ",{}" * _LARGE + "]",
    '{"a0":0' + "".join(f',"a{n}":{n}' for n in range(_LARGE // 10)) + "}",
)  # fmt: skip
_TOML_VALUES = (
    "true", "false", "0", "1", "2", "-1", "+1", "-0.0", "0.5", "1_000_000_000", "9223372036854775807",
    "9223372036854775808", "-9223372036854775809", "1e308", "1e400", "1e-400", "nan", "-nan", "inf", "-inf",
    "9" * 5_000, "0x" + "f" * 5_000, "0b" + "1" * 20_000, "0o17", "0." + "9" * 5_000,
    '""', '" "', '"x"', "'~nosuch/x'", "'/'", "'..'", "'x/y/z'", "'a--b/c'", '"\u00b2"', '"\u0663"',
    '"' + "x" * _LARGE + '"', '"' + "\u4e2d" * _LARGE + '"', '"\u0000"', '"\u001b]52;c;eA==\u0007"',
    '"\u202e"', '"\U0010ffff"', '"""\na\nb"""', "'''\na\nb'''",
    "[]", "{}", "[[]]", "[{}]", "[1, 'a']", "['']", "[0, -1]", "[nan]", "[" + "0," * _LARGE + "]",
    "2026-11-25", "2026-02-31", "25:00:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
    "07:32:00.999999999", "{a = 1}", "{'' = {'' = 1}}", "{a.b.c = [1, {d = 'e'}]}",
    "[" * _DEEP + "]" * _DEEP, "{a=" * 500 + "1" + "}" * 500, "[" * 90 + "]" * 90,
    '"auto"', '"#fff 50%"', '"#12345678"', '"rgb(1,2"', '"hsl(1e9,1%,1%)"', '"bold not"', '"none"',
    '"ansi_red"', '"$primary"', '"red; color: blue"', '"ctrl+"', '"ctrl+a,,"', '"%s{}"', '"/dev/zero"',
)  # fmt: skip
_NAMES = (
    "", " ", "x" * 300, "\x1b[0m", "\n", "\0", "unknown", "__class__", "__metadata__", "a.b", "0", "-1",
    "9" * 5_000, "\u4e2d", "$x", "../x", "null",
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
    values = _change_some(rng, table, _JSON_VALUES)
    text = _with_values(json.dumps(table), values)
    if rng.random() < 0.05:
        text = _with_key_twice(rng, text)
    if rng.random() < 0.03:
        text = rng.choice(
            (text + text, f"[{text}]", f'{{"a": {text}}}', text + "\n" + text, json.dumps(text))
        )
    return text.encode(errors="surrogatepass")


def _with_key_twice(rng: random.Random, text: str) -> str:
    keys = list(islice(re.finditer(r'"[^"\\]*": ', text), 500))
    if not keys:
        return text
    key = rng.choice(keys)
    return f"{text[: key.start()]}{key[0]}{rng.choice(_JSON_VALUES)}, {text[key.start() :]}"


def _toml(rng: random.Random, content: bytes) -> bytes:
    table = tomllib.loads(content.decode())
    values = _change_some(rng, table, _TOML_VALUES)
    text = _with_values(tomli_w.dumps(table), values)
    if rng.random() < 0.05:
        text += text
    if rng.random() < 0.05:  # a key, a table or an array of tables that is there already
        name = rng.choice(list(table) or ["a"])
        text += rng.choice((f"\n[{name!r}]\na = 1\n", f"\n[[{name!r}]]\n", f"\n{name!r}.a.b = 1\n"))
    return text.encode(errors="surrogatepass")


def _safetensors(rng: random.Random, content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    if rng.random() < 0.2:
        length = rng.choice(
            (0, 1, len(content), 1 << 31, 1 << 40, 1 << 63, (1 << 64) - 1, rng.randrange(length))
        )
        return struct.pack("<Q", length) + content[8:]
    header = _json(rng, content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _with_values(text: str, values: Sequence[str]) -> str:
    for index, value in enumerate(values):
        text = text.replace(f'"{_PLACE.format(index)}"', value)
    return text


def _change_some(rng: random.Random, table: Any, values: tuple[str, ...]) -> list[str]:
    """Change one or a few places below a table; the texts to put where ``_PLACE`` is, by number."""
    put: list[str] = []
    for index in range(rng.choice((1, 1, 1, 1, 2, 5))):
        _change(rng, table, _PLACE.format(index))
        put.append(rng.choice(values))
    if rng.random() < 0.03:  # every value of a type
        kind, put_everywhere = rng.choice((str, int, list, dict)), _PLACE.format(len(put))
        for holder, key in places(table):
            if isinstance(holder[key], kind):
                holder[key] = put_everywhere
        put.append(rng.choice(values))
    return put


def _change(rng: random.Random, table: Any, place: str) -> None:
    """Change a value, a key or the order somewhere below a table, or mark a value as one to replace."""
    found = list(places(table))
    if not found:
        return
    holder, key = rng.choice(found)
    action = rng.random()
    if action < 0.55:
        holder[key] = place
    elif action < 0.75:
        holder[key] = _similar(rng, holder[key])
    elif action < 0.85:
        del holder[key]
    elif isinstance(holder, dict) and action < 0.95:
        name = rng.choice((*_NAMES, str(key).upper(), f" {key}", f"{key}\0", str(key)[:-1]))
        holder[name] = holder.pop(key) if rng.random() < 0.5 else place
    else:
        other, name = rng.choice(found)
        if other is holder:
            holder[key], other[name] = other[name], holder[key]
        else:
            holder[key] = copy.deepcopy(other[name])


def _similar(rng: random.Random, value: Any) -> Any:
    """Another value near by: of another type, one more or less, twice as long, empty."""
    near: tuple[Any, ...]
    match value:
        case bool() | None:
            near = (not value, int(bool(value)), str(value), [value])
        case int() | float():
            near = (-value, value + 1, value - 1, value * 1_000, value / 3, str(value), [value], {"a": value})
        case str():
            near = (value * 2, value[:-1], f" {value}", value.upper(), f"{value}\0", f"{value}\n", [value])
            near += (list(value[:100]), {value: value}, value.encode()[:100].hex(), value + "\u0301" * 1_000)
        case list():
            near = (value[:-1], value[1:], [*value, *value], value[::-1], value[:1] * 1_000, [value], [])
            near += (dict(enumerate(map(str, value))), value[0] if value else 0)
        case dict():
            near = ({}, list(value), list(value.values()), [value], {"a": value}, dict.fromkeys(value))
        case _:
            near = (str(value), [value])
    return _storable(rng.choice(near))


def _storable(value: Any) -> Any:
    """TOML has no null, and keys are texts."""
    match value:
        case dict():
            return {str(key): _storable(one) for key, one in value.items()}
        case list():
            return [_storable(one) for one in value]
        case None:
            return ""
    return value


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
        b"\0", b"\0" * 5_000, b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80",
        b"\x1b]0;x\x07", b"\xc2\x9d", b"[" * _DEEP, b"{" * _DEEP, b'{"a":' * _DEEP, b'"', b"\\", b"''", b"#",
        b"\r", b"\x1a", b"\xe2\x80\xa8", b"9" * 5_000, b"-" * 5_000, b"=", b",", b"\n[a]\n", b"{{", b"{%",
    )  # fmt: skip
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
    return rng.choice(
        (
            b"", b"\0", bytes(100), b"\n", b" " * 1_000, rng.randbytes(rng.randrange(1, 5_000)),
            b"a." * 50_000 + b"a = 1", b'"a".' * 20_000 + b"a = 1", b"null", b"[]", b"{}",
            b"0", b"true",
            b"9" * 5_000, b"[" * 100_000, b'{"a":' * 100_000, b"NaN", content * 2, content * 50,
        )
    )  # fmt: skip


def _packed(rng: random.Random, content: bytes) -> bytes:
    return gzip.compress(rng.choice((content, bytes(1 << 20))), mtime=0)


def _overwrite(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    fill = rng.choice((b"\0", b"\xff", b" ", b"9", b"["))
    return content[:start] + fill * rng.choice((1, 50, len(content) - start)) + content[start + 50 :]


def _no_text(rng: random.Random, content: bytes) -> bytes:
    """A letter that is no UTF-8, anywhere."""
    letters = [place for place, byte in enumerate(content[:50_000]) if chr(byte).isalnum()] or [0]
    place = rng.choice(letters)
    return (
        content[:place] + rng.choice((b"\xff", b"\x80", b"\xe4", b"\xf0\x9f", b"\0")) + content[place + 1 :]
    )


_BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flip,
    _flip,
    _flip_near_the_start,
    _cut,
    _splice,
    _drop,
    _insert,
    _insert,
    _other_encoding,
    _noise,
    _packed,
    _overwrite,
    _no_text,
)
