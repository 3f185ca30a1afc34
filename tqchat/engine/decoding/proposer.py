"""Interface of a source of drafted tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Proposer(Protocol):
    """Proposes the next tokens of a reply. They are verified, so a wrong proposal only costs time."""

    def expects(self, tokens: Sequence[int]) -> bool:
        """Whether something will probably be proposed once the next token is known.

        If not, the token after it is computed without waiting for it.

        Args:
            tokens: Prompt and reply so far; they only grow.
        """

    def propose(self, tokens: Sequence[int], number: int, most: int) -> list[int]:
        """At most ``most`` tokens that may follow, possibly none.

        Args:
            number: Of the next token in the reply.
        """

    def verified(self, proposed: int, accepted: int, seconds: float) -> None:
        """Learn how many of the proposed tokens were accepted, and how long the step took."""

    def stepped(self, seconds: float, read_ahead: bool) -> None:
        """Learn how long a step without proposals took, and whether it was submitted ahead of time."""
