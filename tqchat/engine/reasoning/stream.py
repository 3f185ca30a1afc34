"""Detokenizes a reply, splits it into reasoning and answer, and detects its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tqchat.engine.commands import Part
from tqchat.engine.reasoning.call_tokens import CallTokens
from tqchat.engine.reasoning.controls import Controls, special_ids
from tqchat.engine.reasoning.detokenizer import Detokenizer
from tqchat.engine.reasoning.splitter import Span, Splitter
from tqchat.engine.reasoning_marks import Marks, marks_of
from tqchat.engine.templates import chat_template

PROMPT_TAIL_TOKENS = 64
"""Tokens at the end of a prompt that are searched for reasoning opened by the template."""

_BARRIER = "\ufffe"


@dataclass(frozen=True)
class Ends:
    """End of a model's turn: its stop tokens and strings.

    Attributes:
        named: End-of-sequence tokens of the tokenizer, ``config.json`` and ``generation_config.json``.
        template: Tokens that the chat template writes between a reply and the next message.
        texts: Ordinary text that it writes there: stop sequences.
    """

    named: frozenset[int] = frozenset()
    template: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()


class ReplyFormat:
    """Format of one model's replies: marks, ends and special tokens."""

    def __init__(self, tokenizer: Any, ends: Ends | None = None) -> None:
        self.tokenizer = tokenizer
        self.ends = ends or Ends(frozenset(tokenizer.eos_token_ids))
        template = chat_template(tokenizer)
        self._template = template.source if template is not None else ""
        vocabulary = set(Controls(tokenizer, ()).added)
        self.marks: Marks = marks_of(vocabulary, self._template)
        channels = self.marks.channels
        spelled = [mark for pair in self.marks.pairs for mark in (pair.opening, pair.closing)]
        if channels is not None:
            spelled += [*channels.headers, *channels.bodies, *channels.ends, *channels.closers]
        self.controls = Controls(tokenizer, spelled)
        self.special = special_ids(tokenizer)
        self._message_ends = frozenset(
            token
            for mark in (channels.ends if channels else ())
            if (token := self.controls.added.get(mark)) is not None
        )

    def splitter(self, prompt: Sequence[int] = (), call_mark: str = "") -> Splitter:
        """A splitter for a reply to this prompt, which may have opened reasoning."""
        splitter = Splitter(self.marks, self.controls, self.ends.texts, call_mark)
        if not prompt:
            return splitter
        tail = self._text(prompt[-PROMPT_TAIL_TOKENS:]).rpartition(_BARRIER)[2]
        probe = Splitter(self.marks, self.controls)
        probe.feed(tail)
        written = tail.rstrip()
        if probe.part == "reasoning":
            splitter.begin_inside()
        elif self.marks.channels is None and probe.has_thought:
            splitter.begin_after_thought()
        else:
            for pair in self.marks.pairs:
                if written.endswith(pair.opening) and not self.controls.is_control(pair.opening):
                    splitter.begin_inside(pair.opening)
                elif written.endswith(pair.closing) and not self.controls.is_control(pair.closing):
                    splitter.begin_after_thought()
        return splitter

    def opening(self) -> str:
        """Text that opens reasoning if the template does not."""
        if self.marks.channels is not None:
            return self.marks.channels.opening
        pair = self._pair()
        return f"{pair[0]}\n"

    def closing(self) -> str:
        """Text that ends reasoning and begins the answer."""
        if self.marks.channels is not None:
            return self.marks.channels.closing
        return f"\n{self._pair()[1]}\n\n"

    def answer(self) -> str:
        """Text that begins an answer without reasoning."""
        return self.marks.channels.answer if self.marks.channels is not None else ""

    @property
    def end_tokens(self) -> frozenset[int]:
        """Every token that can end a reply."""
        return self.ends.named | self.ends.template

    @property
    def reasons(self) -> bool:
        """Whether the vocabulary or the template has reasoning marks."""
        return self.marks.channels is not None or self._own_pair() is not None

    def is_end(self, token: int, splitter: Splitter, calls: bool = False) -> bool:
        """Whether a token ends the reply; the end of a message before the answer does not, that of a call
        does.
        """
        if calls and token in self._message_ends:
            return True
        if token in self._message_ends and splitter.part == "reasoning":
            return False
        if token in self.ends.named:
            return True
        if token not in self.ends.template:
            return False
        if self.controls.character(token) is None:
            return True
        return token in self._message_ends and bool(splitter.answer.strip()) and not splitter.is_preamble

    def _pair(self) -> tuple[str, str]:
        pair = self.marks.pairs[0]
        return self._own_pair() or (pair.opening, pair.closing)

    def _own_pair(self) -> tuple[str, str] | None:
        """The marks of this model: preferably control tokens, else those in its template."""
        by_token = [pair for pair in self.marks.pairs if self.controls.is_control(pair.closing)]
        by_text = [pair for pair in self.marks.pairs if pair.closing in self._template]
        both = [pair for pair in by_token if pair in by_text]
        for pair in (*both, *by_token, *by_text):
            return pair.opening, pair.closing
        return None

    def _text(self, tokens: Sequence[int]) -> str:
        """Tokens as text with control characters; other special tokens are barriers."""
        detokenizer = Detokenizer(self.tokenizer)
        text = ""
        for token in tokens:
            character = self.controls.character(token)
            if character is not None:
                text += detokenizer.flush() + character
            elif token in self.special or token in self.ends.named or token in self.ends.template:
                text += detokenizer.flush() + _BARRIER
            else:
                text += detokenizer.add(token)
        return text + detokenizer.flush()


class TextStream(Protocol):
    """Converts the tokens of one reply to spans of text, see ``ReplyStream``."""

    @property
    def text(self) -> str: ...
    @property
    def reasoning(self) -> str: ...
    @property
    def reasoning_tokens(self) -> int: ...
    @property
    def took_answer(self) -> bool: ...
    @property
    def thinking(self) -> bool: ...
    @property
    def ended(self) -> bool: ...
    def is_end(self, token: int) -> bool: ...
    def add(self, token: int) -> list[Span]: ...
    def finish(self, cut: bool = True) -> list[Span]: ...


class ReplyStream:
    """Converts the tokens of one reply to spans of text.

    Attributes:
        reasoning_tokens: Tokens that belong to the reasoning, its marks included.
        took_answer: Whether text emitted as answer turned out to be reasoning.
    """

    def __init__(
        self, format: ReplyFormat, prompt: Sequence[int] = (), call_marks: tuple[str, str] | None = None
    ) -> None:
        """
        Args:
            prompt: The tokens before the reply.
            call_marks: Marks before and after a call of a tool. They and the control tokens between them are
                text of the answer.
        """
        self._format = format
        self._detokenizer = Detokenizer(format.tokenizer)
        self._call_marks = call_marks
        self._calls = CallTokens(format, *call_marks) if call_marks is not None else None
        self._splitter = format.splitter(prompt, call_marks[0] if call_marks is not None else "")
        self._before = (0, 0)
        self._shown_ahead: dict[Part, str] = {}
        self._prompt = prompt[-PROMPT_TAIL_TOKENS:]
        self.took_answer = False
        self._tokens = 0
        self.reasoning_tokens = 0

    @property
    def text(self) -> str:
        """The answer; of a continued reply, only the new part."""
        return self._splitter.answer[self._before[1] :]

    @property
    def reasoning(self) -> str:
        """The reasoning, likewise."""
        return self._splitter.reasoning[self._before[0] :]

    @property
    def thinking(self) -> bool:
        """Whether the next token belongs to the reasoning."""
        return self._splitter.part == "reasoning"

    @property
    def ended(self) -> bool:
        """Whether a stop sequence or another role's message has begun."""
        return self._splitter.ended

    def is_end(self, token: int) -> bool:
        """Whether this token ends the reply."""
        calls = self._calls is not None and self._calls.inside
        return self._format.is_end(token, self._splitter, calls)

    def begin_after(self, tokens: Sequence[int]) -> None:
        """Continue a reply that was cut off after ``tokens``. Text that was held back and shown at its end is
        not emitted again.
        """
        if not tokens:
            return
        cut = ReplyStream(self._format, self._prompt, self._call_marks)
        for token in tokens:
            self.add(token)
            cut.add(token)
        self._before = len(cut._splitter.reasoning), len(cut._splitter.answer)
        for span in cut.finish():
            self._shown_ahead[span.part] = self._shown_ahead.get(span.part, "") + span.text
        self._tokens = self.reasoning_tokens = 0

    def _unseen(self, span: Span) -> Span:
        """A span without the text that ``begin_after`` found already shown."""
        ahead = self._shown_ahead.pop(span.part, "")
        if span.takes_answer:
            self.took_answer = True
            self._before = self._before[1], 0
        if not ahead or not span.text.startswith(ahead):
            return span
        reasoning, answer = self._before
        added = len(ahead)
        self._before = (
            (reasoning + added, answer) if span.part == "reasoning" else (reasoning, answer + added)
        )
        return Span(span.part, span.text[added:], span.takes_answer)

    def add(self, token: int) -> list[Span]:
        """Add a token; returns the text that it completes, possibly none."""
        splitter, format = self._splitter, self._format
        thought = self.thinking
        self._tokens += 1
        character = format.controls.character(token)
        calls = self._calls
        control = calls.control(token) if calls is not None else None
        if calls is not None and (calls.inside or control is not None):
            if control is None:
                spans = splitter.feed_call(self._detokenizer.add(token))
            else:
                if control == calls.start:
                    splitter.end_thought()
                spans = splitter.feed_call(self._detokenizer.flush() + control)
        elif character is not None:
            spans = splitter.feed(self._detokenizer.flush() + character)
        elif token in format.special or token in format.ends.named:
            spans = splitter.feed(text) if (text := self._detokenizer.flush()) else []
        else:
            spans = splitter.feed(text) if (text := self._detokenizer.add(token)) else []
        if calls is not None:
            calls.follow(spans)
        if any(span.takes_answer for span in spans):
            self.reasoning_tokens = self._tokens
        elif thought or self.thinking:
            self.reasoning_tokens += 1
        return [unseen for span in spans if (unseen := self._unseen(span)).text or unseen.takes_answer]

    def finish(self, cut: bool = True) -> list[Span]:
        """End the reply; returns the text held back, without bytes of an incomplete character."""
        text = self._detokenizer.flush()
        spans = (self._splitter.feed(text) if text else []) + self._splitter.finish(cut)
        return [unseen for span in spans if (unseen := self._unseen(span)).text or unseen.takes_answer]
