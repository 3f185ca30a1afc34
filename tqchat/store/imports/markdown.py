"""Chats as Markdown: files whose messages begin with a heading or a name, ``tqchat export`` included."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tqchat.store.imports.transcript import (
    Piece,
    SourceRole,
    Transcript,
    chained,
    local_id,
    unix_time,
)
from tqchat.store.records import Status
from tqchat.text import fence_after

NAME = "Markdown"
MAX_FILE_BYTES = 16_000_000

_ROLES: Mapping[str, SourceRole] = {
    **dict.fromkeys(("you", "user", "human", "me", "prompt", "question", "q"), "user"),
    **dict.fromkeys(("assistant", "ai", "bot", "model", "answer", "response", "reply", "a"), "assistant"),
    **dict.fromkeys(("system", "system prompt", "instructions"), "system"),
}
_MODEL_NAMES = (
    *("chatgpt", "claude", "codestral", "command", "copilot", "deepseek", "gemini", "gemma", "gpt", "grok"),
    *("llama", "mistral", "mixtral", "o1", "o3", "phi", "qwen", "smollm", "starter"),
)
_HEADING = re.compile(r"(#{1,6})[ \t]+(\S[^\n]*)")
_BOLD = re.compile(r"\*\*([^*\n]{1,60})\*\*:?[ \t]*")
_NAMED = re.compile(r"([A-Za-z][A-Za-z ]{0,20}):(?=\s|\Z)[ \t]*")
_NOTE = re.compile(r"\s*[\[(][^\[\]()]*[\])]\s*\Z")
_SAID = re.compile(r"\s+(?:said|says|asked|wrote)\Z")
_MODEL_ID = re.compile(r"[\w./:+-]{1,200}(?: \+ [\w./:-]{1,200})?")
_FACTS = re.compile(r"\*(\d{4}-\d\d-\d\d \d\d:\d\d)(?:, (.+))?\*")
_OTHER_BRANCHES = re.compile(
    r"\n\n\*\d+ more messages? on other branches; export as JSON to keep them\.\*\s*\Z"
)
_OWN = re.compile(r"# \S[^\n]*\n\n\*\d{4}-\d\d-\d\d \d\d:\d\d")
"""Beginning of an export by tqchat: title and date."""
_EXPORTS = re.compile(rf"\n---\n\n(?={_OWN.pattern})")
_OWN_MARK = re.compile(r"## \S")
_HEADING_WITHIN = re.compile(r"\A#{1,2} (?= *\S)")
_SPACED_HEADING = re.compile(r"\A(#{1,2} ) (?= *\S)")
_FRONT_MATTER = re.compile(r"---\n(.*?\n)---\n", re.DOTALL)
_FIELD = re.compile(r"([A-Za-z_]+):[ \t]*(\S[^\n]*)")
_MAX_NAME_CHARS = 200


def with_spaced_headings(text: str) -> str:
    """The text of a message for an export: its headings get a second space, which readers of Markdown ignore.

    So they cannot be taken for the beginning of a conversation or of a message, which have one.
    """
    lines, fence = text.split("\n"), ""
    for number, line in enumerate(lines):
        above, fence = fence, fence_after(line, fence)
        if not above and not fence:
            lines[number] = _HEADING_WITHIN.sub(r"\g<0> ", line)
    return "\n".join(lines)


def transcripts(text: str, name: str, changed_at: float | None) -> list[Transcript]:
    """The conversations of a file; none if nobody speaks in it.

    Args:
        name: The file's name, the title of a conversation without one.
        changed_at: When the file was changed, for a conversation without a date.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    found = (_transcript(part, name, changed_at) for part in _exports(text))
    return [one for one in found if one is not None]


def _exports(text: str) -> Iterator[str]:
    """The conversations of an export of several; a code block may contain another export."""
    start = read = 0
    fence = ""
    for found in _EXPORTS.finditer(text):
        for line in text[read : found.start()].split("\n"):
            fence = fence_after(line, fence)
        read = found.start() + 1
        if not fence:
            yield text[start : found.start()]
            start = found.end()
    yield text[start:]


@dataclass
class _Turn:
    role: SourceRole
    status: Status = "complete"
    model: str | None = None
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Mark:
    """The beginning of a message: how it is written, whose it is, and what follows on its line."""

    style: str
    name: str
    note: str
    rest: str


def _transcript(text: str, name: str, changed_at: float | None) -> Transcript | None:
    about: dict[str, str] = {}
    if front := _FRONT_MATTER.match(text):
        about = {key.lower(): value.strip(" \"'") for key, value in _FIELD.findall(front[1])}
        text = text[front.end() :]
    text = _OTHER_BRANCHES.sub("", text)
    head, turns = _turns(text, about.get("model"))
    title = about.get("title") or next(
        (found[2].strip() for line in head if (found := _HEADING.fullmatch(line.strip()))), ""
    )
    facts = next((found for line in head if (found := _FACTS.fullmatch(line.strip()))), None)
    written = about.get("created") or about.get("date") or (facts[1] if facts else None)
    system = [turn for turn in turns if turn.role == "system"]
    said = [turn for turn in turns if turn.role != "system" and _text(turn)]
    if not said:
        return None
    pieces = chained(
        Piece(
            str(number),
            str(number - 1) if number else None,
            turn.role,
            _text(turn),
            model=turn.model,
            status=turn.status,
        )
        for number, turn in enumerate(said)
    )
    listed = list(pieces.values())
    title = title or name
    return Transcript(
        NAME,
        about.get("id") or local_id(title, listed[min(1, len(listed) - 1)].key),
        title,
        listed,
        "Assistant",
        unix_time(written) or changed_at,
        changed_at,
        system_prompt="\n\n".join(text for turn in system if (text := _text(turn))) or None,
    )


def _text(turn: _Turn) -> str:
    return "\n".join(turn.lines).strip("\n").rstrip()


def _turns(text: str, model: str | None) -> tuple[list[str], list[_Turn]]:
    """The lines before the first message, and the messages."""
    is_own = _OWN.match(text.lstrip()) is not None
    head: list[str] = []
    turns: list[_Turn] = []
    style = "##" if is_own else None
    fence = ""
    for line in text.split("\n"):
        mark = None
        above, fence = fence, fence_after(line, fence)
        if not above and not fence and (not is_own or _OWN_MARK.match(line)):
            mark = next((one for one in _marks(line) if style is None or one.style == style), None)
        if mark is not None and (role := _role(mark, model, turns)) is not None:
            style = mark.style
            status: Status = "unfinished" if mark.note == "unfinished" else "complete"
            status = "stopped" if mark.note == "stopped" else status
            named = mark.name if role == "assistant" and mark.name.lower() not in _ROLES else None
            turns.append(_Turn(role, status, named, [mark.rest] if mark.rest else []))
        elif turns:
            is_spaced = is_own and not above and not fence
            turns[-1].lines.append(_SPACED_HEADING.sub(r"\1", line) if is_spaced else line)
        else:
            head.append(line)
            if facts := _FACTS.fullmatch(line.strip()):
                model = facts[2] or model
    return head, turns


def _marks(line: str) -> Iterator[_Mark]:
    if len(line) > 0 and line[0] == "#":
        if (found := _HEADING.fullmatch(line.rstrip())) and len(found[2]) <= _MAX_NAME_CHARS:
            yield _mark(found[1], found[2].rstrip("# "), "")
    elif found := _BOLD.match(line):
        yield _mark("bold", found[1], line[found.end() :])
    elif found := _NAMED.match(line):
        yield _mark("name", found[1], line[found.end() :])


def _mark(style: str, name: str, rest: str) -> _Mark:
    note = _NOTE.search(name)
    if note:
        name = name[: note.start()]
    name = _SAID.sub("", name.strip().rstrip(":").strip())
    # Emoji and the like before a name.
    name = re.sub(r"\A[^\w]+", "", name)
    return _Mark(style, name, note[0].strip(" []()") if note else "", rest)


def _role(mark: _Mark, model: str | None, turns: list[_Turn]) -> SourceRole | None:
    name = mark.name.lower()
    if name in _ROLES:
        # "A:" and "Q:" may be anything before someone has spoken.
        return _ROLES[name]
    if model is not None and mark.name == model:
        return "assistant"
    if mark.style == "name" and " " in name:
        return None
    if name.startswith(_MODEL_NAMES) and len(name) <= 60:
        return "assistant"
    # After a question, the name of a model that is not known.
    after_question = bool(turns) and turns[-1].role == "user" and mark.style.startswith("#")
    return "assistant" if after_question and _MODEL_ID.fullmatch(mark.name) else None
