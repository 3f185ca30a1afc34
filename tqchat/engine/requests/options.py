"""How requests of other programs are answered; imports nothing that takes time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RequestOptions:
    """How requests of other programs are answered.

    Attributes:
        scheme: The scheme of a request that names none; may be ``auto``.
        store: Whether their caches are saved.
        keep_days: Saved caches that were not used for so long are deleted.
    """

    scheme: str = "auto"
    store: bool = True
    keep_days: float = 7.0
