"""Reads JSON piece by piece, so that a file of any size needs little memory. Files are untrusted."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any, NoReturn

from tqchat.store.errors import StoreError
from tqchat.units import size

MAX_FILE_BYTES = 2_000_000_000
"""Larger files are rejected while they are read."""

_MAX_SMALL_CHARS = 64 << 10
_MAX_ITEMS = 100_000
"""Values of one list or object that ``pick`` keeps; more are in no export of one conversation."""
_READ_BYTES = 64 << 10
_MAX_BUFFERED_CHARS = 4 * _READ_BYTES
"""Bounds the memory of values that are decoded whole."""
_MAX_EXPONENT_CHARS = 8
"""Characters to look ahead to see that a number has ended."""
_SPACE = re.compile(r"[ \t\r\n]*")


class BadImport(StoreError):
    """The file is not a valid export; nothing was imported."""

    exit_code = 2

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The file cannot be imported: {reason}. Nothing was imported.")


class JsonStream:
    """Reads JSON piece by piece. Every method leaves the position behind what it has read.

    Raises:
        BadImport: where the text is not JSON, or the file too large.
        ValueError: for a number of thousands of digits, and text that is not UTF-8.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._decoder = json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False
        self._bytes = self._lines = 0

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def expect_end(self) -> None:
        """Check that nothing follows."""
        if self.peek():
            raise BadImport("it is not JSON (there is more after its end)")

    def names(self) -> Iterator[str]:
        """The names in an object; the caller reads the value of each before the next."""
        self._take("{")
        if self.peek() != "}":
            while True:
                if self.peek() != '"':
                    self._fail("expecting a name in double quotes")
                key: str = self.scalar()
                self._take(":")
                yield key
                if self.peek() != ",":
                    break
                self._take(",")
        self._take("}")

    def places(self) -> Iterator[None]:
        """The places of a list's values; the caller reads each before the next."""
        self._take("[")
        if self.peek() != "]":
            while True:
                yield
                if self.peek() != ",":
                    break
                self._take(",")
        self._take("]")

    def scalar(self) -> Any:
        """A text, number, boolean or null; of a list or an object only its kind: an empty one."""
        start = self.peek()
        if start in ("[", "{"):
            return [] if start == "[" else {}
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._more():
                    self._fail(error.msg.lower())
                continue
            if len(self._text) - end < _MAX_EXPONENT_CHARS and self._more():
                continue  # a number may go on
            self._at = end
            return value

    def small(self) -> Any:
        """A value of any kind whose text is short.

        Raises:
            BadImport: if it is longer.
        """
        self.peek()
        while len(self._text) - self._at < _MAX_SMALL_CHARS and self._more():
            pass
        text = self._text[self._at : self._at + _MAX_SMALL_CHARS]
        try:
            value, end = self._decoder.raw_decode(text)
        except json.JSONDecodeError as error:
            self._fail(error.msg.lower())
        self._at += end
        return value

    def pick(self, shape: object) -> Any:
        """A value of any kind, of which only what ``shape`` names is kept.

        Args:
            shape: For an object, the shapes of the values to keep, by name. For a list, one shape of its
                values, in a list. ``None`` for a text, number or boolean. A list or object without a shape
                is passed over and counts as ``None``.
        """
        start = self.peek()
        if start and start in "[{" and (whole := self._buffered()) is not None:
            return _keep(whole, shape)
        if start == "{" and isinstance(shape, Mapping):
            kept: dict[str, Any] = {}
            for name in self.names():
                if name in shape:
                    kept[name] = self.pick(shape[name])
                else:
                    self.skip()
            return kept
        if start == "[" and isinstance(shape, list):
            values: list[Any] = []
            for _ in self.places():
                if len(values) >= _MAX_ITEMS:
                    raise BadImport(f"it has a list of more than {_MAX_ITEMS:,} values")
                values.append(self.pick(shape[0]))
            return values
        if start and start in "[{":
            self.skip()
            return None
        return self.scalar()

    def skip(self) -> None:
        """Pass over a value of any kind."""
        depth = 0
        while True:
            start = self.peek()
            if start and start in "[{" and not depth and self._buffered() is not None:
                return
            if start and start in "[{":
                self._at += 1
                depth += 1
            elif start and start in "]}" and depth:
                self._at += 1
                depth -= 1
            elif start and start in ",:" and depth:
                self._at += 1
            else:
                self.scalar()
            if not depth:
                return

    def _buffered(self) -> Any:
        """The list or object here, if all of it has been read and it is small; else ``None``.

        Decoding it whole is many times faster than piece by piece.
        """
        if len(self._text) - self._at > _MAX_BUFFERED_CHARS:
            return None
        try:
            value, self._at = self._decoder.raw_decode(self._text, self._at)
        except (ValueError, RecursionError):
            return None  # cut off, or read piece by piece for its error
        return value

    def _take(self, character: str) -> None:
        if self.peek() != character:
            self._fail(f"expecting {character!r}")
        self._at += 1

    def _more(self) -> bool:
        """Read on; what has been passed is dropped. Doubling keeps the time for long texts linear."""
        if self._ended:
            return False
        left = len(self._text) - self._at
        content = self._file.read(max(_READ_BYTES, left))
        self._bytes += len(content)
        if self._bytes > MAX_FILE_BYTES:
            raise BadImport(f"it is larger than {size(MAX_FILE_BYTES)}")
        self._ended = not content
        self._lines += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + self._decode(content, self._ended), 0
        return True

    def _fail(self, what: str) -> NoReturn:
        line = self._lines + self._text.count("\n", 0, self._at) + 1
        raise BadImport(f"it is not JSON ({what} in line {line})")


def _keep(value: Any, shape: object) -> Any:
    """What ``pick`` keeps of a value that is decoded already."""
    if isinstance(value, dict):
        if not isinstance(shape, Mapping):
            return None
        return {name: _keep(value[name], shape[name]) for name in value if name in shape}
    if isinstance(value, list):
        if not isinstance(shape, list):
            return None
        if len(value) > _MAX_ITEMS:
            raise BadImport(f"it has a list of more than {_MAX_ITEMS:,} values")
        return [_keep(one, shape[0]) for one in value]
    return value
