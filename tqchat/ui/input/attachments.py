"""Files attached to a message: reading them, appending them to its text, extracting them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqchat.errors import TqchatError
from tqchat.files import Unreadable, read_bytes, reason_of
from tqchat.paths import expand_user
from tqchat.text import decode_text, one_line
from tqchat.ui import figures

_HEADER = re.compile(r"Attached file (\S.*):")
_OPENING_FENCE = re.compile(r"(`{3,}+)[^`]*")
_FENCE = re.compile(r"`{3,}+")
_MENTION = re.compile(r"""(?<![^\s(])@(?:"([^"\n]+)"|'([^'\n]+)'|((?:\\.|[^\s"])+))""")
_ESCAPED = re.compile(r"\\(.)")
_PATH_LIKE = re.compile(r"/|\.\w{1,8}\Z|\A~")
MAX_FILE_BYTES = 1_000_000
"""Largest file that can be attached; more than any local model can read."""


class CannotAttach(TqchatError):
    """A file that a message names cannot be attached."""


@dataclass(frozen=True)
class Attachment:
    """A file's name, and its text when it was attached."""

    name: str
    text: str

    @property
    def label(self) -> str:
        """``notes.md · 120 lines · 4.2 kB``, or ``notes.md · empty``."""
        if not self.text:
            return f"{one_line(self.name)} · empty"
        count = self.text.removesuffix("\n").count("\n") + 1
        lines = "1 line" if count == 1 else f"{figures.number(count)} lines"
        return f"{one_line(self.name)} · {lines} · {figures.size(len(self.text.encode(errors='replace')))}"

    @property
    def block(self) -> str:
        """The text for the model: a code block whose fence is longer than any inside."""
        longest = max((len(run) for run in re.findall(r"`{3,}", self.text)), default=2)
        fence = "`" * (longest + 1)
        suffix = self.name.rpartition(".")[2] if "." in self.name else ""
        language = suffix if re.fullmatch(r"\w{1,12}", suffix) else ""
        text = self.text.removesuffix("\n")
        return f"Attached file {one_line(self.name)}:\n{fence}{language}\n{text}\n{fence}"


def join(text: str, files: list[Attachment]) -> str:
    """The message as it is sent: text, then files."""
    if not files:
        return text
    return "\n\n".join(part for part in (text.rstrip(), *(file.block for file in files)) if part)


def split(message: str) -> tuple[str, list[Attachment]]:
    """The text of a message and its files: blocks as ``join`` writes them, up to the end of the message."""
    if "Attached file " not in message:
        return message, []
    lines = message.split("\n")
    last = len(lines) - 1
    while last > 0 and not lines[last].strip():
        last -= 1
    # From the end: a block counts if the message ends after it, or another block that counts follows.
    blocks: dict[int, tuple[str, int]] = {}
    fences: dict[str, list[int]] = {}
    for number in range(last, -1, -1):
        if _FENCE.fullmatch(lines[number]):
            fences.setdefault(lines[number], []).append(number)
        if number == last or (header := _HEADER.fullmatch(lines[number])) is None:
            continue
        opening = _OPENING_FENCE.fullmatch(lines[number + 1])
        below = fences.get(opening[1], []) if opening is not None else []
        # An opening fence without a language looks like a closing one.
        end = next((at for at in reversed(below[-2:]) if at > number + 1), None)
        if end is not None and (end == last or (lines[end + 1] == "" and end + 2 in blocks)):
            blocks[number] = header[1], end
    first = min((at for at in blocks if at == 0 or (at > 1 and lines[at - 1] == "")), default=None)
    if first is None:
        return message, []
    files: list[Attachment] = []
    at = first
    while at in blocks:
        name, end = blocks[at]
        files.append(Attachment(name, "\n".join(lines[at + 2 : end])))
        at = end + 2
    return "\n".join(lines[: max(first - 1, 0)]), files


def read_mentioned(
    text: str,
    folder: Path,
    earlier: Sequence[Attachment] = (),
    *,
    strict: bool = True,
    known_text: str = "",
    as_words: Collection[str] = (),
) -> list[Attachment]:
    """Read the files that a text names with ``@path`` or ``@"a path"`` (see ``mentions``), each once.

    Args:
        folder: Base of relative paths.
        earlier: Files attached before, used where one no longer exists.
        strict: Whether a name that looks like a path, but cannot be attached, is an error.
        known_text: Text whose names are never errors, such as pasted code.
        as_words: Names that are not attached.

    Raises:
        CannotAttach: if a file does not exist, is not text, or is too large.
    """
    known = set(mentions(known_text, folder)) if known_text else set()
    found: dict[str, Attachment] = {}
    for name in mentions(text, folder):
        if name in found or name in as_words:
            continue
        try:
            file = _attachment(name, folder, earlier)
        except CannotAttach:
            if strict and name not in known:
                raise
        else:
            if file is not None:
                found[name] = file
    return list(found.values())


@dataclass(frozen=True)
class Preview:
    """A name in the prompt that stands for a file: what sending will do with it."""

    name: str
    label: str
    attached: bool


def preview(
    text: str, folder: Path, earlier: Sequence[Attachment] = (), as_words: Collection[str] = ()
) -> list[Preview]:
    """Names of the files that ``read_mentioned`` will attach, and of those that it cannot attach."""
    found: dict[str, Preview] = {}
    for name in mentions(text, folder):
        if name in found:
            continue
        try:
            file = _attachment(name, folder, earlier)
        except CannotAttach as error:
            if kind_of(folder / expand_user(name)) == "file":
                found[name] = Preview(name, f"sent as words: {error}", False)
            continue
        if file is not None:
            words = name in as_words
            found[name] = Preview(
                name, f"sent as words: {one_line(name)}" if words else file.label, not words
            )
    return list(found.values())


def _attachment(name: str, folder: Path, earlier: Sequence[Attachment]) -> Attachment | None:
    """The file of a name; ``None`` if the name is only words."""
    path = folder / expand_user(name)
    kind = kind_of(path)
    if kind == "file":
        return Attachment(name, _read(path, name))
    before = next((one for one in earlier if one.name == name), None)
    if before is None and (kind or _PATH_LIKE.search(name)):
        raise _no_file(name, kind)
    return before


def written_names(text: str) -> tuple[str, ...]:
    """Names after an ``@`` in a text, whether there are such files or not."""
    return tuple("".join(found) for found in _MENTION.findall(text)) if "@" in text else ()


def mentions(text: str, folder: Path) -> Iterator[str]:
    """The names after an ``@`` in a text.

    In quotes, or with backslashes before spaces, as terminals write the name of a file that is dropped there.
    """
    for double_quoted, single_quoted, plain in _MENTION.findall(text):
        name = double_quoted or single_quoted or plain
        if plain and kind_of(folder / expand_user(unescaped := _ESCAPED.sub(r"\1", plain))) == "file":
            yield unescaped
            continue
        # Punctuation after a name belongs to the sentence, unless a file has that name.
        if plain and not kind_of(folder / expand_user(name)):
            name = name.rstrip(".,;:!?)]}'")
        if name:
            yield name


def kind_of(path: Path) -> str:
    """``file``, ``folder``, ``other``, ``barred``, or empty for nothing, invalid names included."""
    try:
        return "file" if path.is_file() else "folder" if path.is_dir() else "other" if path.exists() else ""
    except PermissionError:
        return "barred"
    except (OSError, ValueError):
        return ""


def _read(path: Path, name: str) -> str:
    name = one_line(name)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CannotAttach(
                f"{name} has {figures.size(size)}; at most {figures.size(MAX_FILE_BYTES)} can be attached."
            )
        data = read_bytes(path, MAX_FILE_BYTES)
    except OSError as error:
        raise CannotAttach(f"{name} cannot be read ({reason_of(error)}).") from error
    except Unreadable as error:
        raise CannotAttach(f"{name} {error.reason}.") from error
    try:
        return decode_text(data)
    except UnicodeDecodeError as error:
        if b"\0" in data:
            raise CannotAttach(f"{name} is not a text file; only those can be attached.") from error
        raise CannotAttach(f"{name} is not UTF-8 text; save it as UTF-8 to attach it.") from error


def read_file(folder: Path, name: str) -> Attachment:
    """Read a file to attach.

    Args:
        folder: Base of a relative path.

    Raises:
        CannotAttach: if it does not exist, is not text, or is too large.
    """
    path = folder / expand_user(name)
    if (kind := kind_of(path)) != "file":
        raise _no_file(name, kind)
    return Attachment(name, _read(path, name))


def _no_file(name: str, kind: str) -> CannotAttach:
    """Why a name that stands for no file, but for ``kind``, cannot be attached."""
    shown = one_line(name)
    if kind == "folder":
        return CannotAttach(f"{shown} is a folder; name a file in it.")
    if kind == "barred":
        return CannotAttach(f"{shown} cannot be read (permission denied).")
    if kind:
        return CannotAttach(f"{shown} is a pipe or a device; only files can be attached.")
    return CannotAttach(f"There is no file {shown} here.")
