"""Splits the streamed text of a reply into reasoning and answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from tqchat.engine.commands import Part
from tqchat.engine.reasoning.controls import Controls, without_controls
from tqchat.engine.reasoning_marks import Channels, Marks, Pair, is_other_speaker, part_of

LONGEST_HEADER = 400
"""Characters after which a header without an end counts as text of the answer."""

_PIECE_CHARACTERS = 256
"""Text is processed in pieces of this length, each in time proportional to its square at most."""

_BARE_HEADER = "to="
"""Beginning of a header that follows the generation prompt without a mark."""

_State = Literal["start", "reasoning", "between", "answer", "header"]


@dataclass(frozen=True)
class Span:
    """Text of one part of a reply.

    With ``takes_answer`` all text emitted as answer before is reasoning: the reply began with reasoning of
    which only the end is marked.
    """

    part: Part
    text: str
    takes_answer: bool = False


@dataclass(frozen=True)
class _Rule:
    """A mark, with control characters, and its action."""

    mark: str
    act: Callable[[str], None]
    control: bool


class _AnswerSoFar:
    """Context of a possible mark at the end of an answer, updated with each piece.

    Attributes:
        at_line_start: Whether only spaces precede on its line.
        in_code: Whether a code fence, or code within the line, is open.
        opened: The opening marks that occur in it.
    """

    def __init__(self, openings: Sequence[str]) -> None:
        self.at_line_start = True
        self._in_fence = self._in_line_code = False
        self.opened: frozenset[str] = frozenset()
        self._openings = openings
        self._overlap = max(map(len, openings), default=1) - 1
        self._end = self._backticks = ""

    @property
    def in_code(self) -> bool:
        return self._in_fence or self._in_line_code

    def add(self, text: str) -> None:
        """Add text to the end."""
        _, line_break, line = text.rpartition("\n")
        self.at_line_start = (bool(line_break) or self.at_line_start) and not line.strip(" ")
        self._in_line_code = (self._in_line_code and not line_break) != (line.count("`") % 2 == 1)
        code = self._backticks + text
        self._in_fence ^= code.count("```") % 2 == 1
        self._backticks = "`" * ((len(code) - len(code.rstrip("`"))) % 3)
        joined = self._end + text
        self.opened |= {opening for opening in self._openings if opening in joined}
        self._end = joined[len(joined) - min(self._overlap, len(joined)) :]

    def followed_by(self, text: str) -> _AnswerSoFar:
        """The same with more text."""
        longer = copy(self)
        longer.add(text)
        return longer


class Splitter:
    """A state machine over the text of one reply. Marks are not emitted; partial ones are held back.

    Marks made of special tokens count everywhere, other marks only where text is unlikely: an opening one at
    the beginning of the reply or, if it is one token, of a line outside code; a closing one inside the
    reasoning that it closes or, if nothing was opened or spoken of, at the beginning of a line or, if it is
    one token, outside code.

    A message whose header begins with ``call_mark`` is a call of a tool: part of the answer, header included.

    Attributes:
        has_thought: Whether reasoning was opened or closed.
        is_preamble: Whether another message of the reply follows this one.
        ended: Whether a stop sequence, or the beginning of another role's message, was found.
    """

    def __init__(
        self, marks: Marks, controls: Controls, stop_texts: Sequence[str] = (), call_mark: str = ""
    ) -> None:
        self._reasoning: list[str] = []
        self._answer: list[str] = []
        self.ended = False
        self.is_preamble = False
        self._marks, self._controls, self._call_mark = marks, controls, call_mark
        self._state: _State = "start"
        self._buffer = ""
        self._held_space = ""
        self._closing: tuple[str, ...] = ()
        self.has_thought = False
        self._header = self._header_mark = self._recipient = ""
        self._closes_text = False
        self._wrapper = ""
        self._separate = False
        self._spans: list[Span] = []
        self._by_control: list[_Rule] = []
        self._openings: dict[str, str] = {}
        self._closings: dict[str, str] = {}
        self._opening_of: dict[str, str] = {}
        """Openings, as an answer has them, by closing mark: those of text and of ``_tags``."""
        self._tags: dict[str, str] = {}
        """Marks that are one token that text has too, and that text."""
        self._wrappers = {
            controls.text(opening): controls.text(closing) for opening, closing in marks.wrappers
        }
        for pair in marks.pairs:
            self._learn_pair(pair)
        if marks.channels is not None:
            self._learn_channels(marks.channels)
        for stop in stop_texts:
            self._by_control.append(_Rule(controls.text(stop), self._stop, True))
        self._so_far = _AnswerSoFar(tuple(self._opening_of.values()))
        every = [rule.mark for rule in self._by_control]
        every += [*self._openings, *self._closings, *self._wrappers, *self._wrappers.values()]
        self._first = re.compile(f"[{re.escape(''.join({mark[0] for mark in every}))}]")
        if marks.channels is not None and (marks.channels.starts_in_header or _BARE_HEADER in call_mark):
            self._state = "header"

    @property
    def reasoning(self) -> str:
        """All reasoning so far."""
        return _joined(self._reasoning)

    @property
    def answer(self) -> str:
        """All of the answer so far."""
        return _joined(self._answer)

    @property
    def part(self) -> Part:
        """The part that the next text belongs to, unless a mark comes first."""
        return "reasoning" if self._state == "reasoning" else "answer"

    def begin_inside(self, opening: str | None = None) -> None:
        """Start inside reasoning that the prompt opened; ``opening`` is its mark if of ordinary text."""
        self._open(self._controls.text(opening) if opening is not None else "")

    def begin_after_thought(self) -> None:
        """Start after reasoning that the prompt opened and closed; closing marks then have no effect."""
        self.has_thought = True
        self._state = "between"

    def feed(self, text: str) -> list[Span]:
        """Add text; returns the spans that no later text can change."""
        for start in range(0, len(text), _PIECE_CHARACTERS):
            self._buffer += text[start : start + _PIECE_CHARACTERS]
            while not self.ended and self._step():
                pass
        return self._take()

    def feed_call(self, text: str) -> list[Span]:
        """Add text of a call, in which marks do not count."""
        if not self.ended:
            rest, self._buffer = self._buffer, ""
            if self._state == "header":
                self._end_message("")
            self._give(rest + text)
        return self._take()

    def end_thought(self) -> None:
        """End reasoning that is not closed."""
        if self._state == "reasoning":
            self._end_message("")

    def finish(self, cut: bool = True) -> list[Span]:
        """End the reply; returns the text that was held back.

        Args:
            cut: Whether the reply was cut off; a partial mark at the end of reasoning is then dropped.
        """
        rest, self._buffer = self._buffer, ""
        if not self.ended:
            if self._state == "header":
                said = self._reasoning or self._answer or self._closes_text
                header = self._header + rest
                begun = _BARE_HEADER.startswith(header.strip()[: len(_BARE_HEADER)])
                rest = "" if said or self.has_thought or begun else header
            elif cut and (self._state != "answer" or self._wrapper.startswith(rest)):
                rest = rest[: self._mark_begun_at(rest)]
            if self._state == "start" and rest:
                rest = self._held_space + rest
            self._emit(rest)
        return self._take()

    def _learn_pair(self, pair: Pair) -> None:
        opening, closing = self._controls.text(pair.opening), self._controls.text(pair.closing)
        for text, mark in ((pair.opening, opening), (pair.closing, closing)):
            if self._controls.may_be_text(text):
                self._tags[mark] = text
        if self._controls.is_control(pair.opening):
            self._by_control.append(_Rule(opening, self._open, True))
        else:
            self._openings[opening] = closing
        if self._controls.is_control(pair.closing):
            self._by_control.append(_Rule(closing, self._close, True))
        else:
            self._closings[closing] = opening
        if closing in self._closings or closing in self._tags:
            self._opening_of[closing] = self._spelled(opening)

    def _learn_channels(self, channels: Channels) -> None:
        text = self._controls.text
        for mark in channels.headers:
            self._by_control.append(_Rule(text(mark), self._begin_header, True))
        for mark in channels.bodies:
            self._by_control.append(_Rule(text(mark), self._begin_body, True))
        for mark in channels.ends:
            if self._controls.is_control(mark):
                self._by_control.append(_Rule(text(mark), self._end_message, True))

    def _step(self) -> bool:
        """Process part of the buffer; ``False`` if more text is needed first."""
        if self._state in ("start", "between") and (at_mark := self._take_space()) is not None:
            return at_mark
        if self._first.search(self._buffer) is None:
            now, self._buffer = self._buffer, ""
            self._give(now)
            return False
        found = self._next_rule()
        if found is not None:
            at, rule = found
            before, self._buffer = self._buffer[:at], self._buffer[at + len(rule.mark) :]
            self._give(before)
            rule.act(rule.mark)
            return True
        keep = self._mark_begun_at(self._buffer)
        now, self._buffer = self._buffer[:keep], self._buffer[keep:]
        self._give(now)
        return False

    def _take_space(self) -> bool | None:
        """Before the first word of a part: hold white space back and look for a mark.

        Returns:
            ``None`` to continue with the rest of ``_step``; else the return value of ``_step``.
        """
        rest = self._buffer.lstrip()
        self._held_space += self._buffer[: len(self._buffer) - len(rest)]
        self._buffer = rest
        if not rest:
            return False
        rules = self._active()
        if any(rest.startswith(rule.mark) and self._counts(rule, 0) for rule in rules):
            return None
        wrappers = {} if self._state == "start" else self._wrappers
        for opening in (*self._openings, *wrappers):
            if rest.startswith(opening):
                self._buffer = rest[len(opening) :]
                if opening in wrappers:
                    self._wrapper = wrappers[opening]
                else:
                    self._open(opening)
                return True
        if any(
            mark.startswith(rest) for mark in (*self._openings, *wrappers, *(rule.mark for rule in rules))
        ):
            return False
        if self._state == "start":
            self._buffer = self._held_space + rest
        self._held_space = ""
        self._state = "answer"
        return None

    def _active(self) -> list[_Rule]:
        """The marks recognised in the current state."""
        rules = list(self._by_control)
        if self._state == "reasoning":
            rules += [_Rule(mark, self._close, False) for mark in self._closing]
        elif not self.has_thought and self._state != "header":
            rules += [_Rule(mark, self._close_alone, False) for mark in self._closings]
        if self._wrapper:
            rules.append(_Rule(self._wrapper, self._close_wrapper, False))
        return rules

    def _next_rule(self) -> tuple[int, _Rule] | None:
        best: tuple[int, _Rule] | None = None
        for rule in self._active():
            at = self._buffer.find(rule.mark)
            while at >= 0 and not self._counts(rule, at):
                at = self._buffer.find(rule.mark, at + 1)
            if at < 0:
                continue
            if best is None or (at, -len(rule.mark)) < (best[0], -len(best[1].mark)):
                best = at, rule
        return best

    def _counts(self, rule: _Rule, at: int) -> bool:
        """Whether a mark at ``at`` counts: in an answer, text may speak of it."""
        is_token = rule.mark in self._tags
        if rule.act != self._close_alone and not (is_token and self._state == "answer"):
            return True
        said = self._so_far.followed_by(self._spelled(self._held_space + self._buffer[:at]))
        if said.in_code:
            return False
        if self.has_thought or rule.act == self._open:
            return said.at_line_start
        return (said.at_line_start or is_token) and self._opening_of[rule.mark] not in said.opened

    def _mark_begun_at(self, text: str) -> int:
        """Index from which the end of the text may be a partial mark; its length if none."""
        marks = [rule.mark for rule in self._active()]
        if self._state in ("start", "between"):
            marks += [*self._openings, *self._wrappers]
        longest = max((len(mark) for mark in marks), default=1) - 1
        for at in range(max(0, len(text) - longest), len(text)):
            if any(len(mark) > len(text) - at and mark.startswith(text[at:]) for mark in marks):
                return at
        return len(text)

    def _give(self, text: str) -> None:
        """Process text without marks in the current state."""
        if not text:
            return
        if self._state == "header":
            self._header += text
            if len(self._header) > LONGEST_HEADER:
                text, self._header, self._state = self._header, "", "answer"
                self._emit(text)
            return
        if self._state == "start":
            text, self._held_space = self._held_space + text, ""
            self._state = "answer"
        elif self._state == "between":
            self._held_space = ""
            self._state = "answer"
        self._emit(text)

    def _emit(self, text: str) -> None:
        if self._state == "answer":
            text = self._spelled(text)
        text = without_controls(text)
        if self._state == "reasoning":
            # White space is held back until text follows, so that none remains before a closing mark.
            begins = self._separate or not self._reasoning
            kept = text.rstrip()
            if kept:
                now = self._held_space + kept
                text, self._held_space = now.lstrip() if begins else now, text[len(kept) :]
            else:
                text, self._held_space = "", "" if begins else self._held_space + text
        if not text:
            return
        if self._separate and (self._reasoning if self._state == "reasoning" else self._answer):
            text = "\n\n" + text
        self._separate = False
        if self._state == "reasoning":
            self._reasoning.append(text)
            self._spans.append(Span("reasoning", text))
        else:
            self._answer.append(text)
            self._so_far.add(text)
            self._spans.append(Span("answer", text))

    def _spelled(self, text: str) -> str:
        """Text with the tokens that text has too as they are written."""
        for mark, written in self._tags.items():
            text = text.replace(mark, written)
        return text

    def _take(self) -> list[Span]:
        """The spans since the last call, neighbours of the same part joined."""
        found, self._spans = self._spans, []
        taken = 0
        keys: list[tuple[int, Part]] = []
        for span in found:
            taken += span.takes_answer
            keys.append((taken, span.part))
        groups = groupby(zip(keys, found, strict=True), lambda one: one[0])
        joined = [[span for _, span in group] for _, group in groups]
        return [
            Span(group[0].part, "".join(span.text for span in group), group[0].takes_answer)
            for group in joined
        ]

    # Actions of marks

    def _open(self, mark: str) -> None:
        if self._state == "reasoning":
            return
        closing = self._openings.get(mark)
        self._closing = (closing,) if closing is not None else tuple(self._closings)
        self._state, self.has_thought, self._separate, self._held_space = "reasoning", True, True, ""
        self._wrapper = ""

    def _close(self, mark: str) -> None:
        if self._state == "reasoning":
            self._end_message(mark)
        elif not self.has_thought:
            self._close_alone(mark)

    def _close_alone(self, mark: str) -> None:
        self.has_thought = True
        if answer := self.answer.rstrip():
            self._reasoning = [answer]
            self._spans.append(Span("reasoning", "", takes_answer=True))
        self._answer = []
        self._end_message(mark)

    def _end_message(self, mark: str) -> None:
        self._state, self._held_space, self._separate = "between", "", True
        self._so_far = _AnswerSoFar(tuple(self._opening_of.values()))
        self._wrapper = self._wrappers.get(mark, self._wrapper)

    def _begin_header(self, mark: str) -> None:
        self.has_thought = True
        text = self._controls.text
        channels = self._marks.channels
        if _BARE_HEADER in self._call_mark:
            _, to, recipient = self._header.partition(_BARE_HEADER)
            self._recipient = (to + recipient).strip()
        if channels is not None:
            self._header_mark = next(one for one in channels.headers if text(one) == mark)
        self._closes_text = channels is not None and any(text(one) == mark for one in channels.closers)
        self._state, self._header, self._held_space, self._separate = "header", "", "", True

    def _begin_body(self, mark: str) -> None:
        channels = self._marks.channels
        assert channels is not None
        text = self._controls.text
        body, part = next(one for one in channels.bodies.items() if text(one[0]) == mark)
        header, self._header = self._header, ""
        if self._recipient:
            # gpt-oss names the function before the channel or after it.
            name, space, rest = header.partition(" ")
            header, self._recipient = f"{name} {self._recipient}{space}{rest}", ""
        written = self._header_mark + header + body
        if self._call_mark and written.startswith(self._call_mark):
            self._end_message(mark)
            self._give(written)
            return
        self.is_preamble = "commentary" in header
        if is_other_speaker(header):
            self.ended = True
        elif self._closes_text:
            self._closes_text = False
            self._end_message(mark)
        elif (part or part_of(header)) == "reasoning":
            self._open(mark)
            self._closing = ()
        else:
            self._end_message(mark)

    def _close_wrapper(self, mark: str) -> None:
        self._wrapper = ""

    def _stop(self, mark: str) -> None:
        self.ended = True


def _joined(pieces: list[str]) -> str:
    """The text of some pieces, which it replaces by the whole."""
    if len(pieces) > 1:
        pieces[:] = ["".join(pieces)]
    return pieces[0] if pieces else ""
