"""The caches of requests: in memory under one budget, and on disk."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import logging
import uuid
from collections.abc import Callable, Sequence
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
"""About how long one slice of reading takes, for which other requests wait; less where many are read."""

ROUND_SECONDS = 0.8
"""About how long the slices of all requests that are read take, one after another."""

HELD_BACK = 256
"""Tokens beyond the tail that stay raw until so many are packed at once, or the reply has ended. A request
that packs stops the others, and attention to few raw tokens takes fewer operations than to packed ones.
"""

MAX_TRIMMED_TOKENS, MAX_TRIMMED_SHARE = 64, 0.25
"""A cache that would lose more tokens than this to a request is copied for it instead; one that is saved,
only if that is a larger share of it as well."""

MAX_IDLE = 64
"""Caches kept in memory for later requests, if they fit: the work of finding one grows with their number."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Cached:
    """A cache in memory.

    Attributes:
        id: Names its folder in the vault, together with other caches that began like it.
        needed: Bytes that it will take once the prompt of the request that uses it is read.
        report: What it takes, packed; ``None`` while a request uses it and until it is settled after that.
    """

    id: str
    session: Session
    needed: int = 0
    report: MemoryReport | None = None

    @property
    def bytes(self) -> int:
        """Bytes of its arrays."""
        return self.session.cache.allocated_bytes if self.report is None else self.report.allocated_bytes

    def measured(self) -> MemoryReport:
        """What the cache takes now. Of settled ones, of which there may be many, that is counted once."""
        return self.report or self.session.memory()


class CachePool:
    """Caches of earlier requests, found by the tokens that they begin with.

    Args:
        vault: Where they are saved; ``None`` to keep them in memory only.
        limits: Called for the memory limits of all of them together.
        may_write: Whether this process saves caches, instead of only restoring them.
    """

    def __init__(
        self, vault: Vault | None, limits: Callable[[], Limits], may_write: Callable[[], bool]
    ) -> None:
        self._vault = vault
        self._index = None if vault is None else PrefixIndex(vault)
        self._limits, self._may_write = limits, may_write
        self._idle: list[Cached] = []  # least recently used first
        self._busy: list[Cached] = []
        self._model: LoadedModel | None = None
        self.returned = 0
        """Number of caches given back: what did not fit may fit when that has changed."""

    @property
    def caches(self) -> list[Cached]:
        """All caches in memory."""
        return [*self._idle, *self._busy]

    def bytes(self) -> int:
        """Bytes of the caches in memory."""
        return sum(one.bytes for one in self.caches)

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
        budget = self._budget(empty.model, other_bytes)
        free = None if budget is None else max(0, budget - other_bytes)
        needed = MemoryBudget(Limits()).predicted_bytes(empty.cache, scheme, len(tokens))
        if free is not None:
            self._settle_until(free - needed)
        found, keep = self._longest_idle(tokens, scheme)
        if found is not None and found.report is None:
            self._settle(found)  # or the reply would depend on whether there was time for that
            if found not in self._idle:
                found, keep = None, 0
        stored, restorable = self._longest_saved(empty.model, tokens, scheme)
        restores = restorable > keep + MIN_RECALL_TOKENS
        taken = Cached(stored if restores else uuid.uuid4().hex, empty)
        copied: Cached | None = None
        if found is not None and not restores:
            lost = len(found.session.tokens) - keep
            saved = self._index is not None and not found.session.changed
            share = MAX_TRIMMED_SHARE if saved else 0.0
            limit = max(MAX_TRIMMED_TOKENS, share * len(found.session.tokens))
            if lost > limit and self._fits(found.bytes, free):
                copied, taken.id = found, found.id
            else:
                taken = found
                if lost > limit:  # what the request does not share can be restored later
                    self._save(found)
        taken.needed = max(needed, taken.bytes, 0 if copied is None else copied.bytes)
        if free is not None and not self._make_room(taken, free, copied):
            return None
        if copied is not None:
            taken.session = copied.session.fork()
        elif restores:
            self._restore(taken, tokens, scheme)
        if taken in self._idle:
            self._idle.remove(taken)
        taken.report = None
        self._busy.append(taken)
        self._share(free)
        taken.session.cache.chunk_seconds, taken.session.cache.held_back = CHUNK_SECONDS, HELD_BACK
        return taken

    def share_round(self, reading: int) -> None:
        """Limit the slices of the requests in work.

        Args:
            reading: How many of them read their prompts.
        """
        for one in self._busy:
            one.session.cache.chunk_seconds = min(CHUNK_SECONDS, ROUND_SECONDS / max(1, reading))

    def give_back(self, cached: Cached) -> None:
        """A request no longer uses its cache, which the next one may take at once. ``save`` follows."""
        self._busy.remove(cached)
        self.returned += 1
        if not cached.session.tokens:
            return
        self._idle.append(cached)
        if cached.session.model is not self._model:
            self._release(cached)
        for one in self._idle[:-MAX_IDLE]:
            self._release(one)

    def save(self, interrupted: Callable[[], bool], only_one: bool = False) -> bool:
        """Pack and save what has changed in idle caches. Returns whether something was packed.

        Args:
            interrupted: Called before each of them, and every few megabytes of one; ``True`` ends it.
            only_one: Pack one of them at most.
        """
        packed = False
        for one in [one for one in self._idle if one.report is None or one.session.changed]:
            if interrupted() or (packed and only_one):
                break
            if one.report is None:
                packed = True
                self._settle(one)
            if one in self._idle:
                self._save(one, interrupted)
        return packed

    def _settle_until(self, free: int) -> None:
        """Pack what idle caches hold back until the pool takes at most ``free`` bytes."""
        for one in [one for one in self._idle if one.report is None]:
            if self.bytes() <= free:
                break
            self._settle(one)

    def _settle(self, cached: Cached) -> None:
        """Pack an idle cache after its request; one that has become unusable is dropped."""
        try:
            cached.session.cache.settle(certain=True)
            cached.report = cached.session.memory()
        except Exception:  # its request has been answered, and other requests go on
            _log.exception("Packing the cache of a request failed")
            cached.session.cache.clear()
        if not cached.session.cache.tokens:
            self._idle.remove(cached)

    def shrink(self, free: int) -> None:
        """Release idle caches until the pool takes at most ``free`` bytes, or only what requests use."""
        self._settle_until(free)
        for one in list(self._idle):
            if self.bytes() <= free:
                break
            self._release(one)

    def use(self, model: LoadedModel | None) -> bool:
        """Keep only the caches of this model. Returns whether some were released."""
        if model is self._model:
            return False
        self._model = model
        others = [one for one in self._idle if one.session.model is not model]
        for one in others:
            self._release(one)
        return bool(others)

    def _release(self, cached: Cached) -> None:
        if cached.report is None:
            self._settle(cached)
        if cached in self._idle:
            self._save(cached)
            self._idle.remove(cached)

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

    def _save(self, cached: Cached, interrupted: Callable[[], bool] = lambda: False) -> None:
        if self._vault is None or not cached.session.changed or not self._may_write():
            return
        try:
            cached.session.save(self._vault, cached.id, interrupted)
        except TqchatError as error:
            cached.session.changed = False
            _log.warning("%s", error)
        except Exception:  # as in ``_settle``
            cached.session.changed = False
            _log.exception("Saving the cache of a request failed")

    def _budget(self, model: LoadedModel, other_bytes: int) -> int | None:
        """Bytes that the pool and the caches beside it may take together."""
        if (configured := self._limits().budget) is not None:
            return configured
        share = model.info.memory_budget
        if share is None or not model.on_cpu:
            return share
        return min(share, int(backend.available_memory() * SHARE_OF_AVAILABLE) + self.bytes() + other_bytes)

    @staticmethod
    def _fits(size: int, free: int | None) -> bool:
        return free is None or 2 * size <= free

    def _make_room(self, taken: Cached, free: int, keep: Cached | None) -> bool:
        """Release idle caches until a request's prompt fits. ``False`` if it has to wait for another one's.

        Without other requests there is nothing to wait for: the session refuses what does not fit.
        """
        busy = self._busy_bytes()
        if busy and busy + taken.needed > free:
            return False
        for one in [one for one in self._idle if one is not taken and one is not keep]:
            if busy + taken.needed + sum(other.bytes for other in self._idle if other is not taken) <= free:
                break
            self._release(one)
        return True

    def _busy_bytes(self) -> int:
        return sum(max(one.needed, one.bytes) for one in self._busy)

    def _share(self, free: int | None) -> None:
        """Give each request what the others leave of the memory."""
        busy = self._busy_bytes()
        for one in self._busy:
            limits = self._limits()
            if free is not None:
                others = busy - max(one.needed, one.bytes)
                limits = replace(limits, budget=max(0, free - others))
            one.session.limits = limits
