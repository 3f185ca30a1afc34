"""Marks (delimiters such as ``<think>``) around reasoning: the known ones, and those in a model's files.

Marks are strings as a chat template would write them. Whether a mark is made of control tokens or of ordinary
text depends on the tokenizer (``reasoning/controls.py``), not on its spelling.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tqchat.engine.commands import Part


@dataclass(frozen=True)
class Pair:
    """Reasoning between an opening and a closing mark.

    ``stated`` pairs are used only if the chat template contains one of the two: in replies of other models
    their text may be ordinary.
    """

    opening: str
    closing: str
    stated: bool = False


@dataclass(frozen=True)
class Channels:
    """A reply made of several messages, each with a header that says which part of the reply it is.

    Attributes:
        headers: Marks that begin a header.
        bodies: Marks that end a header and begin a text; ``None`` if the header's text says which part.
        ends: Marks that end a message.
        closers: Header marks whose header closes a text instead of beginning one.
        opening: Text between the generation prompt and reasoning.
        closing: Text between reasoning and answer.
        answer: Text between the generation prompt and an answer without reasoning.
        starts_in_header: Whether the generation prompt ends inside a header.
    """

    headers: tuple[str, ...]
    bodies: Mapping[str, Part | None]
    ends: tuple[str, ...]
    opening: str
    closing: str
    answer: str
    closers: tuple[str, ...] = ()
    starts_in_header: bool = False

    @property
    def thought(self) -> Pair:
        """Text that a template writes around reasoning."""
        return Pair(self.opening, self.closing.partition(self.headers[0])[0])

    def fits(self, vocabulary: Collection[str]) -> bool:
        """Whether a tokenizer has all marks of this kind."""
        return all(mark in vocabulary for mark in (*self.headers, *self.bodies, self.ends[0], *self.closers))


CHANNELS: tuple[Channels, ...] = (
    # gpt-oss (Harmony)
    Channels(
        headers=("<|start|>", "<|channel|>"),
        bodies={"<|message|>": None},
        ends=("<|end|>", "<|return|>", "<|call|>"),
        opening="<|channel|>analysis<|message|>",
        closing="<|end|><|start|>assistant<|channel|>final<|message|>",
        answer="<|channel|>final<|message|>",
    ),
    # Muse
    Channels(
        headers=("<|start|>",),
        bodies={"<|message|>": None},
        ends=("<|eom|>", "<|eot|>"),
        opening=" to=self<|message|>",
        closing="<|eom|><|start|>assistant to=user<|message|>",
        answer=" to=user<|message|>",
        starts_in_header=True,
    ),
    # Solar Open
    Channels(
        headers=("<|begin|>",),
        bodies={"<|think|>": "reasoning", "<|content|>": "answer"},
        ends=("<|end|>",),
        opening="<|think|>",
        closing="<|end|><|begin|>assistant<|content|>",
        answer="<|content|>",
    ),
    # Inkling
    Channels(
        headers=("<|message_model|>",),
        bodies={"<|content_thinking|>": "reasoning", "<|content_text|>": "answer"},
        ends=("<|end_message|>",),
        opening="<|content_thinking|>",
        closing="<|end_message|><|message_model|><|content_text|>",
        answer="<|content_text|>",
    ),
    # Kimi K3
    Channels(
        headers=("<|open|>", "<|close|>"),
        bodies={"<|sep|>": None},
        ends=("<|end_of_msg|>",),
        opening="<|open|>think<|sep|>",
        closing="<|close|>think<|sep|><|open|>response<|sep|>",
        answer="<|open|>response<|sep|>",
        closers=("<|close|>",),
    ),
)


def tag(name: str) -> Pair:
    """The pair ``<name>``, ``</name>``."""
    return Pair(f"<{name}>", f"</{name}>")


PAIRS: tuple[Pair, ...] = (
    tag("think"),  # Qwen, DeepSeek, GLM, MiniMax, Granite, Hunyuan, Nemotron, SmolLM, Ernie
    tag("thinking"),
    tag("thought"),
    tag("Thought"),
    tag("reasoning"),
    tag("longcat_think"),
    tag("seed:think"),
    tag("mm:think"),
    tag("think:opensource"),  # Hunyuan 3
    Pair("[THINK]", "[/THINK]"),  # Magistral, Ministral
    Pair("◁think▷", "◁/think▷"),  # Kimi
    Pair("<|channel>thought", "<channel|>"),  # Gemma 4
    Pair("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    Pair("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Pair("<|think:start|>", "<|think:end|>"),  # Solar Open 2
    Pair("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThinker
    Pair("[unused16]", "[unused17]", stated=True),  # Pangu
    Pair("Here is my thought process:", "Here is my response:", stated=True),  # Granite 3.2
    Pair("Here's my thought process:", "Here's my response:", stated=True),
    Pair("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", stated=True),  # Apriel
)

TEMPLATE_PAIRS = tuple(pair for pair in PAIRS if not pair.stated) + tuple(one.thought for one in CHANNELS)
"""Marks by which reasoning is found in prompts and in earlier replies."""

WRAPPERS: tuple[tuple[str, str], ...] = (
    ("<answer>", "</answer>"),  # Hunyuan, GLM-4.1V
    ("<response>", "</response>"),  # Granite 3.3, Ernie
    ("<output>", "</output>"),
    ("<Output>", "</Output>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"),  # Apriel
)
"""Marks that some models write around the answer after reasoning; the first may also be its end."""

_NAMED = re.compile(r"<([\w:.-]++)>|\[(\w++)\]")
_CLOSING = re.compile(r"</[\w:.-]++>|\[/\w++\]")
_OF_TAG, _OF_BRACKETS = (re.compile(names, re.IGNORECASE) for names in ("think|thought|reason", "think"))
_REASONING_HEADER = re.compile(r"analysis|think|thought|reason|to=self\b")
_TOOL_HEADER = re.compile(r"\bto=(?!user\b|self\b|all\b)")
_OTHER_ROLE = re.compile(r"\s*(user|system|developer|human)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Marks:
    """All marks recognised in one model's replies."""

    pairs: tuple[Pair, ...] = PAIRS
    channels: Channels | None = None
    wrappers: tuple[tuple[str, str], ...] = field(default=WRAPPERS)


def marks_of(vocabulary: Collection[str], template: str) -> Marks:
    """The marks of a model.

    Args:
        vocabulary: Contents of the tokenizer's added tokens.
        template: Source of the chat template, empty without one.
    """
    channels = next((one for one in CHANNELS if one.fits(vocabulary)), None)
    known = [
        pair for pair in PAIRS if not pair.stated or pair.closing in template or pair.opening in template
    ]
    closings = {*vocabulary, *_CLOSING.findall(template)}
    for source in (*vocabulary, template):
        for match in _NAMED.finditer(source):
            if not (_OF_TAG.search(match[1]) if match[1] else _OF_BRACKETS.search(match[2])):
                continue
            pair = tag(match[1]) if match[1] else Pair(f"[{match[2]}]", f"[/{match[2]}]")
            if pair.closing in closings:
                known.append(pair)
    return Marks(tuple(dict.fromkeys(known)), channels)


def part_of(header: str) -> Part:
    """The part of a reply that a message with this header is. Tool calls count as reasoning."""
    return "reasoning" if _REASONING_HEADER.search(header) or _TOOL_HEADER.search(header) else "answer"


def is_other_speaker(header: str) -> bool:
    """Whether a header begins a message of another role."""
    return _OTHER_ROLE.match(header) is not None


def opened_at_end(text: str) -> Pair | None:
    """The marks of a thought that a text opens and does not close."""
    last: tuple[int, Pair] | None = None
    for marks in TEMPLATE_PAIRS:
        at = text.rfind(marks.opening)
        if (
            at >= 0
            and marks.closing not in text[at + len(marks.opening) :]
            and (last is None or at > last[0])
        ):
            last = (at, marks)
    return last[1] if last else None


def split_thought(text: str, opened: Pair | None = None) -> tuple[str, str, str, str] | None:
    """Split a reply that contains its reasoning: opening mark, thought, closing mark, answer.

    Args:
        opened: Marks of a thought that the prompt opened; the reply then begins inside it.

    Returns:
        ``None`` if the reply does not begin with reasoning. A thought that is not closed has no closing mark.
    """
    body = text.lstrip()
    for marks in TEMPLATE_PAIRS:
        if body.startswith(marks.opening):
            opening = text[: len(text) - len(body)] + marks.opening
            thought, closing, answer = body.removeprefix(marks.opening).partition(marks.closing)
            return opening, thought, closing, answer
    if opened is not None:
        # An answer may mention the mark within a line or in a code block.
        fences = re.finditer(rf"```|(?m:^)[ \t]*+(?={re.escape(opened.closing)})", text)
        in_code = False
        for match in fences:
            if match[0] == "```":
                in_code = not in_code
            elif not in_code:
                at = match.end()
                return "", text[:at], opened.closing, text[at + len(opened.closing) :]
    return None
