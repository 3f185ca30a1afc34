"""``tqchat lab endure``: kills, damaged files, full disks; what they leave of conversations and caches."""

from __future__ import annotations

from tqchat.errors import TqchatError


class Broken(TqchatError):
    """Something did not endure. The sentence says what, and where to look."""


def insist(holds: object, sentence: str) -> None:
    """Nothing, if it holds.

    Raises:
        Broken: saying so, if it does not.
    """
    if not holds:
        raise Broken(sentence)
