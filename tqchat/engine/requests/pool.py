"""The caches of requests: in memory under one budget, and on disk."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from tqchat.engine import backend
from tqchat.engine.cache.memory_budget import MemoryBudget
from tqchat.engine.cache.persistence import MIN_RECALL_TOKENS
from tqchat.engine.commands import Limits
from tqchat.engine.memory.budget import SHARE_OF_AVAILABLE
from tqchat.engine.models import LoadedModel
from tqchat.engine.sequences import common_prefix
from tqchat.engine.session import Session
from tqchat.errors import TqchatError
from tqchat.kv.memory import MemoryReport
from tqchat.kv.scheme import parse_scheme
from tqchat.store.vault import Restored, Vault
from tqchat.store.vault.index import PrefixIndex

CHUNK_SECONDS = 0.3
"""About how long one slice of reading takes, for which other requests wait."""

MAX_TRIMMED_TOKENS = 64
"""A cache that would lose more tokens than this to a request is copied for it instead."""

MAX_IDLE = 64
"""Caches kept in memory for later requests, if they fit: the work of finding one grows with their number."""

_DAY_S = 86_400
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Cached:
    """A cache in memory.

    Attributes:
        id: Names its folder in the vault, together with other caches that began like it.
        needed: Bytes that it will take once the prompt of the request that uses it is read.
        report: What it takes; ``None`` while a request uses it.
    """

    id: str
    session: Session
    needed: int = 0
    report: MemoryReport | None = None

    def measured(self) -> MemoryReport:
        """What the cache takes now. Of idle ones, of which there may be many, that is counted once."""
        return self.report or self.session.memory()


class CachePool:
    """Caches of earlier requests, found by the tokens that they begin with.

    Args:
        vault: Where they are saved; ``None`` to keep them in memory only.
        limits: Called for the memory limits of all of them together.
        keep_days: Saved caches that were not used for so long are deleted.
        writes: Whether caches are saved, not only restored.
    """

    def __init__(
        self, vault: Vault | None, limits: Callable[[], Limits], keep_days: float, writes: bool
    ) -> None:
        self._writes = writes
        self._vault = vault
        self._index = None if vault is None else PrefixIndex(vault)
        self._limits = limits
        self._keep_seconds = keep_days * _DAY_S
        self._idle: list[Cached] = []  # least recently used first
        self._busy: list[Cached] = []
        self._model: LoadedModel | None = None

    @property
    def caches(self) -> list[Cached]:
        """All caches in memory."""
        return [*self._idle, *self._busy]

    def bytes(self) -> int:
        """Bytes of the caches in memory."""
        return sum(one.session.cache.allocated_bytes for one in self.caches)

    def take(
        self, make: Callable[[str], Session], tokens: Sequence[int], scheme: str, other_bytes: int
    ) -> Cached | None:
        """The cache that holds most of a prompt's leading tokens, for one request.

        Args:
            make: Makes a session with an empty cache under a scheme.
            other_bytes: Bytes of caches outside the pool that share its memory budget.

        Returns:
            ``None`` if memory suffices only once another request is answered.
        """
        scheme = parse_scheme(scheme).name
        empty = make(scheme)
        found, keep = self._longest_idle(tokens, scheme)
        stored, restorable = self._longest_saved(empty.model, tokens, scheme)
        if restorable > keep + MIN_RECALL_TOKENS:
            taken = Cached(stored, empty)
            copied = None
        elif found is not None:
            copied = found if len(found.session.tokens) - keep > MAX_TRIMMED_TOKENS else None
            taken = found if copied is None else Cached(found.id, empty)
        else:
            taken, copied = Cached(uuid.uuid4().hex, empty), None
        budget = self._budget(empty.model, other_bytes)
        if budget is not None and not self._make_room(taken, tokens, budget - other_bytes, copied):
            return None
        if copied is not None:
            taken.session = copied.session.fork()
        elif taken.session is empty and restorable > keep + MIN_RECALL_TOKENS:
            self._restore(taken, tokens, scheme)
        if taken in self._idle:
            self._idle.remove(taken)
        taken.report = None
        self._busy.append(taken)
        taken.session.cache.chunk_seconds = CHUNK_SECONDS
        return taken

    def give_back(self, cached: Cached) -> None:
        """A request no longer uses its cache; it is saved."""
        self._busy.remove(cached)
        if cached.session.tokens:
            self._save(cached)
            if cached.session.model is self._model:
                cached.report = cached.session.memory()
                self._idle.append(cached)
                del self._idle[:-MAX_IDLE]

    def use(self, model: LoadedModel | None) -> None:
        """Keep only the caches of this model; all are saved."""
        self._model = model
        self._idle = [one for one in self._idle if one.session.model is model]

    def prune(self) -> None:
        """Delete saved caches that are too old, or over the disk budget."""
        if self._vault is None or not self._writes:
            return
        self._vault.remove_leftovers()
        oldest = time.time() - self._keep_seconds
        for entry in self._vault.entries():
            if entry.used_at < oldest:
                with suppress(TqchatError):
                    self._vault.remove(entry.conversation)
        self._vault.prune()

    def _longest_idle(self, tokens: Sequence[int], scheme: str) -> tuple[Cached | None, int]:
        best, most = None, MIN_RECALL_TOKENS - 1
        for one in reversed(self._idle):
            cache = one.session.cache
            if cache.scheme != scheme:
                continue
            shared = min(common_prefix(cache.tokens, tokens), len(tokens) - 1)
            if (keep := cache.retained_tokens(shared)) > most:
                best, most = one, keep
        return best, most if best is not None else 0

    def _longest_saved(self, model: LoadedModel, tokens: Sequence[int], scheme: str) -> tuple[str, int]:
        if self._index is None:
            return "", 0
        return self._index.longest(tokens[:-1], fingerprint=model.info.fingerprint, scheme=scheme)

    def _restore(self, cached: Cached, tokens: Sequence[int], scheme: str) -> None:
        assert self._vault is not None
        fingerprint = cached.session.model.info.fingerprint
        found = self._vault.load(cached.id, fingerprint=fingerprint, scheme=scheme, transcript=tokens)
        if isinstance(found, Restored) and (reason := cached.session.cache.replace_with(found)) is not None:
            _log.info("%s", reason)

    def _save(self, cached: Cached) -> None:
        if self._vault is None or not self._writes or not cached.session.changed:
            return
        try:
            cached.session.save(self._vault, cached.id)
        except TqchatError as error:
            cached.session.changed = False
            _log.warning("%s", error)

    def _budget(self, model: LoadedModel, other_bytes: int) -> int | None:
        """Bytes that the pool and the caches beside it may take together."""
        if (configured := self._limits().budget) is not None:
            return configured
        share = model.info.memory_budget
        if share is None or not model.on_cpu:
            return share
        return min(share, int(backend.available_memory() * SHARE_OF_AVAILABLE) + self.bytes() + other_bytes)

    def _make_room(self, taken: Cached, tokens: Sequence[int], budget: int, keep: Cached | None) -> bool:
        """Release idle caches until a request's prompt fits. ``False`` if it has to wait for another one's.

        Without other requests there is nothing to wait for: the session refuses what does not fit.
        """
        session = taken.session
        taken.needed = max(
            MemoryBudget(Limits()).predicted_bytes(session.cache, session.scheme, len(tokens)),
            session.cache.allocated_bytes,
        )
        busy = sum(max(one.needed, one.session.cache.allocated_bytes) for one in self._busy)
        for one in [one for one in self._idle if one is not taken and one is not keep]:
            if busy + taken.needed + self._idle_bytes(taken) <= budget:
                break
            self._idle.remove(one)
        if busy and busy + taken.needed > budget:
            return False
        free = max(0, budget - busy)
        session.limits = replace(self._limits(), budget=free)
        return True

    def _idle_bytes(self, taken: Cached) -> int:
        return sum(one.session.cache.allocated_bytes for one in self._idle if one is not taken)
