"""``tqchat lab endure``: conversations and caches under kills, damaged files and full disks."""

from __future__ import annotations

from tqchat.errors import TqchatError


class Broken(TqchatError):
    """A check failed. The message says which, and in which folder."""


def require(holds: object, sentence: str) -> None:
    """Check a condition.

    Raises:
        Broken: with ``sentence``, if it is false.
    """
    if not holds:
        raise Broken(sentence)
