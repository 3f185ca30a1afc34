"""What there is to import in a file, a zip archive or a folder, and of which program it is."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqchat.files import Unreadable, open_regular, reason_of
from tqchat.store.import_parser import ParsedConversation, read_conversations
from tqchat.store.imports import chatgpt, claude, lm_studio, markdown
from tqchat.store.imports.json_stream import BadImport, JsonStream
from tqchat.store.imports.transcript import BadConversation, NoMessages, Piece, Transcript, to_conversation
from tqchat.text import one_line

OWN = "tqchat"
_JSON_NAME = re.compile(r"conversations[^/]*\.json|[^/]*\.conversation\.json", re.IGNORECASE)
_MARKDOWN_NAME = re.compile(r"[^/]*\.(?:md|markdown)", re.IGNORECASE)
_ZIP = b"PK\x03\x04"
_MAX_DIRECTORY_BYTES = 8_000_000
"""Largest list of files of a zip archive that is read: about a hundred thousand files."""
_MAX_FILES = 100_000
_SCALARS = (
    "id",
    "conversation_id",
    "title",
    "create_time",
    "update_time",
    "current_node",
    "uuid",
    "name",
    "created_at",
    "updated_at",
    "current_leaf_message_uuid",
    "createdAt",
    "systemPrompt",
)
_PIECES = {
    "mapping": (chatgpt.read_pieces, chatgpt.transcript),
    "chat_messages": (claude.read_pieces, claude.transcript),
    "messages": (lm_studio.read_pieces, lm_studio.transcript),
}
_NOTHING = (
    "it holds no conversations that tqchat can read: its own JSON exports, the data exports of ChatGPT and "
    "Claude (the zip file or its conversations.json), LM Studio's *.conversation.json, and Markdown chats"
)
_Opener = Callable[[], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True)
class Found:
    """A conversation of a source.

    Attributes:
        source: The program.
        parsed: The conversation; ``None`` if there is none that can be read.
        problem: Why not, as a sentence without its full stop.
        is_empty: Whether it is left out only because nothing is said in it.
    """

    source: str
    parsed: ParsedConversation | None
    problem: str = ""
    is_empty: bool = False


@dataclass(frozen=True)
class SourceFile:
    """A file of a source; ``read`` reads its conversations one by one and raises BadImport."""

    name: str
    read: Callable[[], Iterator[Found]]


def files_of(path: Path, now: float) -> Iterator[SourceFile]:
    """The files with conversations in a folder.

    Raises:
        BadImport: if there is none.
    """
    count = 0
    for file in _walk(path):
        is_json, is_markdown = _JSON_NAME.fullmatch(file.name), _MARKDOWN_NAME.fullmatch(file.name)
        if is_json or is_markdown:
            count += 1
            name = str(file.relative_to(path))
            yield SourceFile(name, lambda file=file: _read_path(file, now))  # type: ignore[misc]
    if not count:
        raise BadImport(_NOTHING)


def read_file(file: IO[bytes], name: str, now: float, changed_at: float | None = None) -> Iterator[Found]:
    """The conversations of a file: JSON, a zip archive, or Markdown.

    Args:
        file: It must be seekable.

    Raises:
        BadImport: if it is none of them; naming the first error.
    """
    start = file.read(512)
    file.seek(0)
    if start.startswith(_ZIP):
        yield from _read_zip(file, now)
    elif _MARKDOWN_NAME.fullmatch(Path(name).name) or _may_be_markdown(start, name):
        yield from _read_markdown(file, name, now, changed_at)
    else:
        with _reported():
            yield from _read_json(lambda: _rewound(file), now)


def _may_be_markdown(start: bytes, name: str) -> bool:
    """Whether a file that another name does not declare as Markdown, such as a pipe, begins like no JSON."""
    text = start.removeprefix(BOM_UTF8).lstrip()
    return text[:1] not in (b"", b"{", b"[") and b"\0" not in start and Path(name).suffix.lower() != ".json"


def _rewound(file: IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    """The file from its start; leaving the context does not close it."""
    file.seek(0)
    return nullcontext(file)


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, by name. Links to folders are not followed."""
    waiting, count = [folder], 0
    while waiting:
        place = waiting.pop()
        try:
            entries = sorted(place.iterdir())
        except OSError as error:
            raise BadImport(f"{one_line(str(place))} cannot be read ({reason_of(error)})") from error
        for entry in entries:
            count += 1
            if count > _MAX_FILES:
                raise BadImport(f"it holds more than {_MAX_FILES:,} files")
            if entry.is_dir() and not entry.is_symlink():
                waiting.append(entry)
            elif entry.is_file():
                yield entry


def _read_path(path: Path, now: float) -> Iterator[Found]:
    try:
        with open_regular(path) as file:
            yield from read_file(file, path.name, now, path.stat().st_mtime)
    except (OSError, Unreadable) as error:
        raise BadImport(f"it cannot be read ({error})") from error


def _read_zip(file: IO[bytes], now: float) -> Iterator[Found]:
    with _reported(), zipfile.ZipFile(_Bounded(file)) as archive:
        count = 0
        for entry in archive.infolist():
            name = entry.filename.rpartition("/")[2]
            if entry.is_dir() or entry.filename.startswith("__MACOSX/"):
                continue
            if _JSON_NAME.fullmatch(name):
                count += 1
                yield from _read_json(lambda entry=entry: archive.open(entry), now)  # type: ignore[misc]
            elif _MARKDOWN_NAME.fullmatch(name):
                count += 1
                with archive.open(entry) as member:
                    yield from _read_markdown(member, name, now, None)
        if not count:
            raise BadImport(_NOTHING)


class _Bounded(io.RawIOBase):
    """A file that refuses reads of many bytes: ``zipfile`` reads an archive's whole list of files at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = file.seek(0, io.SEEK_END)

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_DIRECTORY_BYTES:
            raise BadImport("it is a zip archive of too many files")
        if size < 0:
            # Only of the archive's end, where the list of its files is said to be.
            size = min(self._size - self._file.tell(), _MAX_DIRECTORY_BYTES)
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


@contextmanager
def _reported() -> Iterator[None]:
    """Errors of a damaged file as BadImport."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise BadImport("it is not UTF-8 text") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        reason = one_line(str(error))[:100] or "damaged"
        raise BadImport(f"the zip archive cannot be read ({reason})") from error
    except (ValueError, OverflowError) as error:
        raise BadImport("it is not JSON that tqchat can read") from error


def _read_markdown(file: IO[bytes], name: str, now: float, changed_at: float | None) -> Iterator[Found]:
    content = file.read(markdown.MAX_FILE_BYTES + 1)
    if len(content) > markdown.MAX_FILE_BYTES:
        raise BadImport("it is too large for a Markdown chat")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadImport("it is not UTF-8 text") from error
    found = markdown.transcripts(text, Path(name).stem, changed_at)
    if not found:
        problem = f"{one_line(name)} is no chat: no line says who speaks, such as `## User`"
        yield Found(markdown.NAME, None, problem, is_empty=True)
    for one in found:
        yield _found(one, one_line(name), now)


def _read_json(opened: _Opener, now: float) -> Iterator[Found]:
    with opened() as file:
        stream = JsonStream(file)
        if stream.peek() == "[":
            for number, _ in enumerate(stream.places(), 1):
                yield _conversation(stream, f"conversation {number}", now)
            stream.expect_end()
            return
        own = stream.peek() == "{" and _is_own(stream)
    with opened() as file:
        if own:
            for parsed in read_conversations(file):
                yield Found(OWN, parsed)
            return
        stream = JsonStream(file)
        yield _conversation(stream, "it", now)
        stream.expect_end()


def _is_own(stream: JsonStream) -> bool:
    """Whether an object is tqchat's own export, by its first name that tells.

    Raises:
        BadImport: if none does.
    """
    for name in stream.names():
        if name in _PIECES:
            return False
        if name in ("format", "version", "conversations"):
            return True
        stream.skip()
    raise BadImport(_NOTHING)


def _conversation(stream: JsonStream, where: str, now: float) -> Found:
    """The conversation at the stream's position, which is behind it afterwards."""
    if stream.peek() != "{":
        stream.skip()
        return Found("", None, f"{where} is no object")
    values: dict[str, Any] = {}
    pieces: list[Piece] | None = None
    kind, problem = "", ""
    for name in stream.names():
        if name in _PIECES and pieces is None and not problem:
            kind = name
            try:
                pieces = _PIECES[name][0](stream)
            except BadConversation as error:
                problem = str(error)
        elif name == "perChatPredictionConfig":
            values[name] = stream.pick(lm_studio.CONFIGURATION)
        elif name in _SCALARS:
            values[name] = stream.pick(None)
        else:
            stream.skip()
    if problem or pieces is None:
        return Found("", None, f"{where} {problem or 'has no messages that tqchat can read'}")
    return _found(_PIECES[kind][1](values, pieces), where, now)


def _found(transcript: Transcript, where: str, now: float) -> Found:
    named = f"{where} ({one_line(transcript.title)[:60]})" if transcript.title else where
    try:
        parsed = ParsedConversation(*to_conversation(transcript, now))
    except NoMessages as error:
        return Found(transcript.source, None, f"{named} {error}", is_empty=True)
    except BadConversation as error:
        return Found(transcript.source, None, f"{named} {error}")
    return Found(transcript.source, parsed)
