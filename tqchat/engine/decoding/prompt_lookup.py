"""Prompt lookup: proposes what followed the last tokens where they stood before in the conversation.

Source: Saxena, Prompt Lookup Decoding (2023), https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

from tqchat.engine.decoding.payoff import Payoff

MATCH_TOKENS = 3
"""Shortest run of tokens that is looked up."""

MAX_COMPARED_PLACES, MAX_COMPARED_TOKENS = 8, 32
"""Latest occurrences of a run that are compared, and tokens before each; the longest match wins."""

MAX_PROPOSED_TOKENS = 11
"""With the token before them 12 rows: OpenBLAS multiplies more rows with other bits than single ones."""

ESTABLISHED_TOKENS = 8
"""Tokens copied from one place from which copying is expected to go on there, also after a change."""

MAX_CHANGED_TOKENS = 8
"""Longest change in copied text after which copying continues where it was, without a whole run."""


class TokenIndex:
    """Index of the positions of each run of ``MATCH_TOKENS`` tokens in a growing sequence."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, ...], int] = {}
        self._before: list[int] = []
        self._length = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Index the tokens that were added."""
        first = max(self._length - MATCH_TOKENS + 1, 0)
        new = tokens[first:]
        last, before = self._last, self._before
        runs = zip(*(new[shift:] for shift in range(MATCH_TOKENS)), strict=False)
        for end, run in enumerate(runs, first + MATCH_TOKENS):
            before.append(last.get(run, 0))
            last[run] = end
        self._length = len(tokens)

    def find(self, tokens: Sequence[int]) -> int:
        """The position after the place that is most like the end of the tokens; 0 if there is none."""
        end = len(tokens)
        found = best = 0
        for _ in range(MAX_COMPARED_PLACES):
            end = self._before[end - MATCH_TOKENS] if end >= MATCH_TOKENS else 0
            if not end:
                break
            equal = MATCH_TOKENS
            longest = min(end, MAX_COMPARED_TOKENS)
            while equal < longest and tokens[end - 1 - equal] == tokens[-1 - equal]:
                equal += 1
            if equal > best:
                found, best = end, equal
        return found


class PromptLookup:
    """Proposes the continuation of an earlier place in the prompt or the reply."""

    def __init__(self) -> None:
        self._index = TokenIndex()
        self._payoff = Payoff()
        self._length = 0
        self._place = 0
        self._copied = 0
        self._lost_place = 0
        self._changed = 0
        self._established = False

    def expects(self, tokens: Sequence[int]) -> bool:
        """Whether the reply is at a known place and proposals pay."""
        self._follow(tokens)
        return self._place > 0 and self._count(MAX_PROPOSED_TOKENS) > 0

    def propose(self, tokens: Sequence[int], number: int, most: int) -> list[int]:
        """Tokens that followed at the place being copied."""
        self._follow(tokens)
        if not self._place:
            return []
        proposed: list[int] = []
        for position in range(self._place, self._place + self._count(min(most, MAX_PROPOSED_TOKENS))):
            # Past the end, the proposed tokens themselves: a text that repeats.
            ahead = position - len(tokens)
            proposed.append(tokens[position] if ahead < 0 else proposed[ahead])
        return proposed

    def _count(self, most: int) -> int:
        self._established = self._copied >= ESTABLISHED_TOKENS
        return self._payoff.proposals(most, self._established)

    def verified(self, proposed: int, accepted: int, seconds: float) -> None:
        """Learn whether proposals pay."""
        self._payoff.verified(proposed, accepted, seconds, self._established)

    def stepped(self, seconds: float, read_ahead: bool) -> None:
        """Learn what a step without proposals takes."""
        self._payoff.stepped(seconds, read_ahead)

    def _follow(self, tokens: Sequence[int]) -> None:
        """Find the place that the last tokens follow: the same as before, or one from the index."""
        if len(tokens) == self._length:
            return
        self._index.extend(tokens)
        for token in tokens[self._length :] if self._length else ():
            if self._place and tokens[self._place] == token:
                self._place += 1
                self._copied += 1
                continue
            if self._copied >= ESTABLISHED_TOKENS:
                self._lost_place, self._changed = self._place, 0
            self._changed += 1
            self._place = self._copied = 0
        self._length = len(tokens)
        if not self._place:
            place = self._index.find(tokens) or self._after_change(tokens)
            self._place = place if place < len(tokens) else 0

    def _after_change(self, tokens: Sequence[int]) -> int:
        """Position at which copying continues after a change in the copied text; 0 if unknown."""
        if not self._lost_place or self._changed > MAX_CHANGED_TOKENS:
            return 0
        old = tokens[self._lost_place : self._lost_place + MAX_CHANGED_TOKENS]
        if tokens[-1] in old:
            return self._lost_place + old.index(tokens[-1]) + 1
        # Perhaps a token was replaced by as many.
        return self._lost_place + self._changed
