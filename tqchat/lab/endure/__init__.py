"""``tqchat lab endure``: conversations and caches under kills, damaged files and full disks."""

from __future__ import annotations

from tqchat.errors import TqchatError


class CheckFailed(TqchatError):
    """A check failed; the message names it and the folder."""


def require(holds: object, sentence: str) -> None:
    """Check a condition.

    Raises:
        CheckFailed: with ``sentence``, if it is false.
    """
    if not holds:
        raise CheckFailed(sentence)
