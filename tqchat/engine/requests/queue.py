"""Requests that wait and requests that are answered, a slice at a time, each in turn."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqchat.engine.commands import Limits
from tqchat.engine.events import Event, Failed, RequestsUpdate
from tqchat.engine.failures import ContextFull, NoModel, user_message
from tqchat.engine.requests.options import RequestOptions
from tqchat.engine.requests.request import Ticket
from tqchat.errors import TqchatError
from tqchat.store.errors import StoreError
from tqchat.store.lease import Lease, Leases
from tqchat.store.vault import Vault

if TYPE_CHECKING:
    from tqchat.engine.decoding.step import Step
    from tqchat.engine.models import LoadedModel
    from tqchat.engine.requests.answer import Slices
    from tqchat.engine.requests.pool import CachePool

MAX_ACTIVE = 8
"""Requests answered at a time; others wait for one to end, first come first served."""

PRUNE_INTERVAL_S = 3600.0

_DAY_S = 86_400
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Active:
    ticket: Ticket
    model: LoadedModel
    slices: Slices
    step: Step | None = None
    """The step that its next slice runs, unless it was run in a batch."""


class RequestQueue:
    """Answers requests on the engine thread. Only ``submit`` is called from others.

    Args:
        emit: Called with ``RequestsUpdate`` whenever that changes.
        vault: Where caches of requests are saved.
        limits: Called for the memory limits of all caches of requests together.
        lookup: Whether tokens are proposed from the prompt.
        other_bytes: Bytes of caches outside that share the memory budget.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        vault: Vault,
        limits: Callable[[], Limits],
        options: RequestOptions,
        lookup: bool,
        other_bytes: Callable[[], int],
    ) -> None:
        self._emit, self._vault, self._limits, self._options = emit, vault, limits, options
        self._lookup, self._other_bytes = lookup, other_bytes
        self._pruned_at = float("-inf")
        self._waiting: deque[Ticket] = deque()
        self._active: deque[_Active] = deque()
        self._pool: CachePool | None = None
        self._told: RequestsUpdate | None = None
        self._lease: Lease | None = None

    def submit(self, ticket: Ticket) -> None:
        """Hand in a request, from any thread."""
        self._waiting.append(ticket)

    @property
    def has_work(self) -> bool:
        """Whether a request waits or is being answered."""
        return bool(self._waiting or self._active)

    def step(self, model: LoadedModel | None) -> None:
        """Do one slice of work for the request whose turn it is, or one step for all that decode.

        Args:
            model: The loaded model. A request that another one was answering fails.
        """
        self.use(model)
        self._begin(model)
        if self._active:
            first = self._active[0]
            turn = [first] if first.step is None else [one for one in self._active if one.step is not None]
            if self._pool is not None:
                self._pool.share_round(sum(one.step is None for one in self._active))
            self._run_steps(turn, model)
            for one in turn:
                self._active.remove(one)
                if self._advance(one, model):
                    self._active.append(one)
        self._report()

    def use(self, model: LoadedModel | None) -> None:
        """Release the caches of another model, or of the same one with another adapter."""
        if self._pool is not None and self._pool.use(model):
            self._report()

    def end(self, reason: str) -> None:
        """Fail all requests, and release their caches, which are saved."""
        while self._active:
            one = self._active.popleft()
            one.slices.close()
            _tell(one.ticket, Failed(one.ticket.id, reason))
        while self._waiting:
            ticket = self._waiting.popleft()
            _tell(ticket, Failed(ticket.id, reason))
        self.save(lambda: False)
        self._pool = None
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def save(self, interrupted: Callable[[], bool], only_one: bool = False) -> None:
        """Pack and save the caches of requests that were answered; only one of them if others wait.

        Args:
            only_one: Pack only one of them in any case.
        """
        if self._pool is not None and self._pool.save(interrupted, only_one or self.has_work):
            self._report(changed=True)

    def shrink(self, free: int) -> None:
        """Release idle caches until the pool takes at most ``free`` bytes, or only what requests use."""
        if self._pool is not None:
            self._pool.shrink(free)

    def prune(self) -> None:
        """Delete saved caches that are too old, or more than conversations leave of the disk budget.

        Only if no other process saves such caches.
        """
        lease = self._lease or self._acquire()
        self._pruned_at = time.monotonic()
        if lease is None:
            return
        try:
            self._vault.remove_leftovers()
            oldest = time.time() - self._options.keep_days * _DAY_S
            for entry in self._vault.entries():
                if entry.used_at < oldest:
                    with suppress(TqchatError):
                        self._vault.remove(entry.conversation)
            self._vault.prune()
        except Exception:
            _log.exception("Pruning the caches of requests failed")
        finally:
            if lease is not self._lease:
                lease.release()

    def _begin(self, model: LoadedModel | None) -> None:
        """Start waiting requests, as long as few are being answered, and forget those that were dropped."""
        for ticket in tuple(self._waiting):
            if ticket.stopped.is_set():
                self._waiting.remove(ticket)
                _tell(ticket, Failed(ticket.id, "The request was dropped."))
        while self._waiting and len(self._active) < MAX_ACTIVE:
            ticket = self._waiting.popleft()
            if model is None:
                _tell(ticket, Failed(ticket.id, str(NoModel())))
            else:
                try:
                    self._active.append(_Active(ticket, model, self._slices(ticket, model)))
                except Exception as error:
                    _tell(ticket, Failed(ticket.id, user_message(error)))

    def _slices(self, ticket: Ticket, model: LoadedModel) -> Slices:
        from tqchat.engine.requests.answer import answer
        from tqchat.engine.requests.pool import CachePool

        if self._pool is None:
            vault = self._vault if self._options.store else None
            self._pool = CachePool(vault, self._limits, self._may_write)
            self._pool.use(model)
        if time.monotonic() - self._pruned_at > PRUNE_INTERVAL_S:
            self.prune()
        return answer(
            ticket,
            model,
            self._pool,
            default_scheme=self._options.scheme,
            lookup=self._lookup,
            other_bytes=self._other_bytes,
        )

    def _may_write(self) -> bool:
        """Whether this process is the one that saves caches of requests; others only restore them."""
        if self._options.store and self._lease is None:
            self._lease = self._acquire()
        return self._lease is not None

    def _acquire(self) -> Lease | None:
        try:
            return Leases(self._vault.folder).acquire("requests")
        except StoreError as error:
            _log.info("Caches of requests are not saved: %s", error)
            return None

    @staticmethod
    def _run_steps(turn: Sequence[_Active], model: LoadedModel | None) -> None:
        """Run the steps of several requests in one call of the model."""
        steps = [one.step for one in turn if one.step is not None and one.model is model]
        if steps:
            steps[0].run_together(steps)

    def _advance(self, one: _Active, model: LoadedModel | None) -> bool:
        """One slice of a request, up to its next step if it decodes. Returns whether it goes on."""
        from tqchat.engine.decoding.step import Step

        ticket = one.ticket
        try:
            if model is not one.model:
                one.slices.close()
                _tell(ticket, Failed(ticket.id, "Another model was chosen; send the request again."))
                return False
            decodes, one.step = one.step is not None, None
            while True:
                event = next(one.slices)
                if isinstance(event, Step):
                    one.step = event
                elif event is not None:
                    _tell(ticket, event)
                if one.step is not None or not decodes:
                    return True
        except StopIteration:
            return False
        except Exception as error:
            full, refused = isinstance(error, ContextFull), isinstance(error, TqchatError)
            _tell(ticket, Failed(ticket.id, user_message(error), context_full=full, refused=refused))
            return False

    def _report(self, changed: bool = False) -> None:
        caches = [] if self._pool is None else self._pool.caches
        counts = len(self._active), len(self._waiting)
        same = self._told is not None and counts == (self._told.active, self._told.waiting)
        if same and self._active and not changed:
            return  # sizes are told when a request begins or ends, and when its cache is packed
        reports = [one.measured() for one in caches]
        update = RequestsUpdate(
            len(self._active),
            len(self._waiting),
            len(caches),
            sum(report.bytes for report in reports),
            sum(report.fp16_bytes for report in reports),
        )
        if update != self._told:
            self._told = update
            self._emit(update)


def _tell(ticket: Ticket, event: Event) -> None:
    try:
        ticket.receive(event)
    except Exception:
        _log.exception("The receiver of a request's %s failed", type(event).__name__)
