"""Reading the terminal's input, and writing to it."""

from __future__ import annotations

import os
import re
import selectors
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator

from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver
from textual.events import Key, Paste
from textual.message import Message

from tqchat.text import printable
from tqchat.ui.output_filter import with_fixed_columns

PASTE_START, PASTE_END = b"\x1b[200~", b"\x1b[201~"
ALT_ENTER = "\x1b\r"
XTERM_KEY = re.compile(r"\x1b\[27;(\d+);(9|13|27|127)~")
"""A key with modifiers in xterm's form, of those whose characters Textual takes for text."""
ALT = 2
"""The bit of Alt in the modifiers of a sequence, which are sent plus one."""
_BEHIND_ESCAPE = re.compile(r"\x1b\x1b(?:O([A-DFHP-S])|\[(?:(\d{1,2})(?:;(\d))?)?([A-DFHP-S~]))")
"""A key with Alt as iTerm2, rxvt and PuTTY send it: Escape before the sequence of the key."""
READ_BYTES = 65_536
POLL_S = 0.1


class TextKey(Key):
    """A key that types a character which Python does not count as printable."""

    @property
    def is_printable(self) -> bool:
        """Whether fields insert it: always."""
        return True

    def copy(self) -> TextKey:
        """A copy of this key event."""
        return TextKey(self.key, self.character)


TextKey.handler_name = Key.handler_name  # Textual derives it from the name of the class


class _KeyParser(XTermParser):
    """Textual's parser with keys that it loses or does not name: Alt+Enter, Shift+Enter from tmux, spaces of
    other languages, joiners, and emoji that are newer than Python."""

    def _sequence_to_key_events(self, sequence: str, alt: bool = False) -> Iterable[Key]:
        modifiers, code = "3", "13"
        if match := XTERM_KEY.fullmatch(sequence):
            modifiers, code = match.groups()
        elif sequence != ALT_ENTER:
            keys = super()._sequence_to_key_events(sequence, alt)
            is_text = (
                not (alt or sequence.isascii() or sequence.isprintable()) and printable(sequence) == sequence
            )
            return [TextKey(key.key, key.character) for key in keys] if is_text else keys
        return [key.copy() for key in self._parse_extended_key(f"\x1b[{code};{modifiers}u") or ()]


class TerminalInput:
    """Makes events of the bytes that a terminal sends, whatever they are.

    Textual's parser takes escape sequences in a paste for keys, and raises errors at malformed ones.
    """

    def __init__(self) -> None:
        self._decode = getincrementaldecoder("utf-8")("replace").decode
        self._parser = _KeyParser()
        self._last_typed = b""
        self._pasted: bytearray | None = None

    def read(self, data: bytes) -> Iterator[Message]:
        """The events that are complete with ``data``, which may begin and end anywhere."""
        while data:
            if self._pasted is None:
                typed, data = self._until_paste(data)
                yield from self._parse(_BEHIND_ESCAPE.sub(_with_alt, self._decode(typed)))
            else:
                # The end of the paste may be split between two reads.
                unseen = max(0, len(self._pasted) - len(PASTE_END))
                self._pasted += data
                data = b""
                end = self._pasted.find(PASTE_END, unseen)
                if end >= 0:
                    data = bytes(self._pasted[end + len(PASTE_END) :])
                    pasted = self._pasted[:end].decode("utf-8", "replace")
                    self._pasted = None
                    list(self._parser.feed(PASTE_END.decode()))  # the parser has seen the start
                    yield Paste(pasted)

    def tick(self) -> Iterator[Message]:
        """The events that are complete because nothing follows, such as Escape."""
        yield from self._parser.tick()

    def _until_paste(self, data: bytes) -> tuple[bytes, bytes]:
        """Split ``data`` behind the start of a paste, which may have begun in earlier data."""
        earlier = len(self._last_typed)
        seen = self._last_typed + data
        start = seen.find(PASTE_START)
        if start < 0:
            self._last_typed = seen[1 - len(PASTE_START) :]
            return data, b""
        self._last_typed, self._pasted = b"", bytearray()
        cut = start + len(PASTE_START) - earlier
        return data[:cut], data[cut:]

    def _parse(self, text: str) -> Iterator[Message]:
        for character in text:
            try:
                yield from self._parser.feed(character)
            except (ValueError, OverflowError):  # numbers in a sequence that are none, or too large
                failed, self._parser = self._parser, _KeyParser()
                self._parser.mouse_pixels = failed.mouse_pixels
                self._parser.terminal_size = failed.terminal_size
                self._parser.terminal_pixel_size = failed.terminal_pixel_size


def _with_alt(found: re.Match[str]) -> str:
    """The sequence of a key with Alt, in xterm's form."""
    single, number, modifiers, end = found.groups()
    held = int(modifiers or 1) - 1 | ALT
    return f"\x1b[{number or 1};{held + 1}{single or end}"


class TerminalDriver(LinuxDriver):
    """Textual's driver with ``TerminalInput`` and ``with_fixed_columns``."""

    def write(self, data: str) -> None:
        """Write to the terminal."""
        super().write(with_fixed_columns(data))

    def run_input_thread(self) -> None:
        """Read until the driver stops."""
        terminal_input = TerminalInput()
        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                if selector.select(POLL_S):
                    for message in terminal_input.read(os.read(self.fileno, READ_BYTES)):
                        self.process_message(message)
                for message in terminal_input.tick():
                    self.process_message(message)
