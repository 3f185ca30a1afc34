"""Texts of replies to other programs: without reasoning, and up to a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tqchat.engine.reasoning import Span, TextStream
from tqchat.engine.reasoning.detokenizer import Detokenizer


class PlainStream:
    """A ``TextStream`` of a text that is continued: no marks have a meaning, special tokens are left out."""

    reasoning = ""
    reasoning_tokens = 0
    took_answer = thinking = ended = False

    def __init__(
        self, tokenizer: Any, prompt: Sequence[int], ends: frozenset[int], special: frozenset[int]
    ) -> None:
        """
        Args:
            prompt: Tokens of the text so far.
            ends: Tokens that end the text.
            special: Tokens that have no text.
        """
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._ends, self._special = ends, special
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All text so far."""
        self._pieces[:] = ["".join(self._pieces)]
        return self._pieces[0]

    def is_end(self, token: int) -> bool:
        """Whether this token ends the text."""
        return token in self._ends

    def add(self, token: int) -> list[Span]:
        """Add a token; returns the text that it completes."""
        hidden = token in self._special
        return self._given(self._detokenizer.flush() if hidden else self._detokenizer.add(token))

    def finish(self, cut: bool = True) -> list[Span]:
        """End the text; returns what was held back."""
        return self._given(self._detokenizer.flush())

    def _given(self, text: str) -> list[Span]:
        self._pieces.append(text)
        return [Span("answer", text)] if text else []


class StopTexts:
    """Cuts a text at the first of some stop texts, and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """Add text; returns what no stop text can begin in."""
        if self.found:
            return ""
        self._held += text
        begins = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if begins:
            self.found = True
            return self._give(min(begins))
        for at in range(max(0, len(self._held) - self._longest + 1), len(self._held)):
            if any(stop.startswith(self._held[at:]) for stop in self._stops):
                return self._give(at)
        return self._give(len(self._held))

    def finish(self) -> str:
        """End the text; returns what was held back."""
        return "" if self.found else self._give(len(self._held))

    def _give(self, end: int) -> str:
        given, self._held = self._held[:end], self._held[end:]
        return given


class StoppedStream:
    """A ``TextStream`` whose answer ends before the first stop text, or when its reader has enough."""

    def __init__(
        self, stream: TextStream, stops: Sequence[str], enough: Callable[[], bool] = lambda: False
    ) -> None:
        self._stream, self._stops, self._enough = stream, stops, enough
        self._matcher = StopTexts(stops)
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """The answer up to the stop text."""
        self._pieces[:] = ["".join(self._pieces)]
        return self._pieces[0]

    @property
    def reasoning(self) -> str:
        """All of the reasoning."""
        return self._stream.reasoning

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the reasoning."""
        return self._stream.reasoning_tokens

    @property
    def took_answer(self) -> bool:
        """Whether text emitted as answer turned out to be reasoning."""
        return self._stream.took_answer

    @property
    def thinking(self) -> bool:
        """Whether the next token belongs to the reasoning."""
        return self._stream.thinking

    @property
    def ended(self) -> bool:
        """Whether a stop text was found, the reply's own end, or enough."""
        return self._matcher.found or self._stream.ended or self._enough()

    def is_end(self, token: int) -> bool:
        """Whether this token ends the reply."""
        return self._stream.is_end(token)

    def add(self, token: int) -> list[Span]:
        """Add a token; returns the text that it completes."""
        return self._cut(self._stream.add(token))

    def finish(self, cut: bool = True) -> list[Span]:
        """End the reply; returns the text that was held back."""
        spans = self._cut(self._stream.finish(cut))
        if rest := self._matcher.finish():
            self._pieces.append(rest)
            spans.append(Span("answer", rest))
        return spans

    def _cut(self, spans: Sequence[Span]) -> list[Span]:
        found = []
        for span in spans:
            if span.takes_answer:
                self._matcher, self._pieces = StopTexts(self._stops), []
            text = self._matcher.feed(span.text) if span.part == "answer" else span.text
            if span.part == "answer":
                self._pieces.append(text)
            if text or span.takes_answer:
                found.append(Span(span.part, text, span.takes_answer))
        return found
