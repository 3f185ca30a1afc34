"""Options for answering requests of other programs; imports nothing slow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RequestOptions:
    """Options for answering requests of other programs.

    Attributes:
        scheme: The scheme of a request that names none; may be ``auto``.
        store: Whether their caches are saved.
        keep_days: Saved caches that were not used for so long are deleted.
    """

    scheme: str = "auto"
    store: bool = True
    keep_days: float = 7.0
