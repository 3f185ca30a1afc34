"""Requests that decode at the same time share calls of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.engine import tiny as models_of
from tests.engine.talk import TALE, user
from tqchat.engine import models
from tqchat.engine.commands import Limits, Sampling
from tqchat.engine.events import Done, Event, Failed, RequestsUpdate, SchemeChanged
from tqchat.engine.models import LoadedModel
from tqchat.engine.requests.options import RequestOptions
from tqchat.engine.requests.pool import CHUNK_SECONDS, HELD_BACK, ROUND_SECONDS, Cached
from tqchat.engine.requests.queue import MAX_ACTIVE, RequestQueue
from tqchat.engine.requests.request import Request, Ticket
from tqchat.kv.prompt_cache import scheme_caches
from tqchat.kv.scheme import TILE, parse_scheme
from tqchat.paths import Paths
from tqchat.store.vault import Vault

SEEDED = Sampling(temperature=1.0, top_p=0.95, seed=7, max_tokens=12)


@dataclass
class Asked:
    """A request and its events."""

    ticket: Ticket
    events: list[Event]

    @property
    def done(self) -> Done:
        assert isinstance(self.events[-1], Done), self.events[-1]
        return self.events[-1]

    @property
    def ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Done | Failed)


@dataclass
class Calls:
    """Sequences and tokens of each call of the model; ``on_call`` is told before and after each."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    on_call: Callable[[mx.array, Any], None] = lambda tokens, cache: None
    on_return: Callable[[mx.array, Any], None] = lambda tokens, cache: None

    @property
    def steps(self) -> list[int]:
        """Sequences of each step over one token."""
        return [rows for rows, count in self.shapes if count == 1]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[LoadedModel], Calls]:
    """Records the calls of a model."""

    def watched(model: LoadedModel) -> Calls:
        calls, kind = Calls(), type(model.model)
        original = kind.__call__

        def call(self: Any, tokens: mx.array, cache: Any = None, *rest: Any, **more: Any) -> mx.array:
            calls.shapes.append(tokens.shape)
            calls.on_call(tokens, cache)
            logits: mx.array = original(self, tokens, cache, *rest, **more)
            calls.on_return(tokens, cache)
            return logits

        monkeypatch.setattr(kind, "__call__", call)
        return calls

    return watched


class Server:
    """A queue of requests, worked on step by step."""

    def __init__(
        self,
        paths: Paths,
        model: LoadedModel,
        limits: Limits | None = None,
        options: RequestOptions | None = None,
    ) -> None:
        self.model = model
        vault, options = Vault(paths.requests), options or RequestOptions(store=False)
        self._events: list[Event] = []
        self.queue = RequestQueue(
            self._events.append,
            vault,
            lambda: limits or Limits(),
            options,
            True,
            lambda: 0,
        )

    def ask(self, text: str, sampling: Sampling, scheme: str = "turbo4") -> Asked:
        events: list[Event] = []
        ticket = Ticket(Request((user(text),), scheme=scheme, sampling=sampling), events.append)
        self.queue.submit(ticket)
        return Asked(ticket, events)

    def work(self, until: Callable[[], bool] | None = None) -> None:
        while self.queue.has_work and not (until is not None and until()):
            self.queue.step(self.model)

    def caches(self) -> list[Cached]:
        """All caches in memory."""
        return [] if self.queue._pool is None else self.queue._pool.caches

    def told(self) -> RequestsUpdate:
        """The last that was told of all requests."""
        return [one for one in self._events if isinstance(one, RequestsUpdate)][-1]

    def alone(self, text: str, sampling: Sampling, scheme: str = "turbo4") -> Done:
        asked = self.ask(text, sampling, scheme)
        self.work()
        return asked.done


def limited(count: int, seed: int | None = None) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=count, seed=seed)


REQUESTS = (
    ("Hello! My name is Ada.", limited(14), "turbo4"),
    (TALE + "Tell me a story about a dog.", limited(11), "turbo4"),
    (TALE + "And then?", limited(9), "fp16"),
    ("Who are you?", SEEDED, "turbo3"),
    (TALE[: len(TALE) // 2] + "Why?", SEEDED, "affine8"),
)


@pytest.fixture
def server(paths: Paths, tiny: LoadedModel) -> Iterator[Server]:
    one = Server(paths, tiny)
    yield one
    one.queue.end("The test is over.")


def texts(asked: list[Asked]) -> list[tuple[str, str]]:
    return [(one.done.text, one.done.stop_reason) for one in asked]


@pytest.fixture
def alone(paths: Paths, tiny: LoadedModel) -> list[tuple[str, str]]:
    server = Server(paths, tiny)
    return [(done.text, done.stop_reason) for done in (server.alone(*one) for one in REQUESTS)]


def test_requests_share_calls_and_get_the_replies_that_they_get_alone(
    server: Server, alone: list[tuple[str, str]], watch: Callable[[LoadedModel], Calls]
) -> None:
    calls = watch(server.model)
    asked = [server.ask(*one) for one in REQUESTS]
    server.work()
    assert texts(asked) == alone
    assert max(calls.steps) == len(REQUESTS)


def test_eight_requests_take_one_call_per_token(
    server: Server, watch: Callable[[LoadedModel], Calls]
) -> None:
    server.ask("Two, so that the model is tried.", limited(2))
    server.ask("Two.", limited(2))
    server.work()
    calls = watch(server.model)
    tokens = 20
    asked = [server.ask(f"Hello number {n}!", limited(tokens)) for n in range(MAX_ACTIVE)]
    server.work()
    longest = max(one.done.counts.generated for one in asked)
    assert sum(one.done.counts.generated for one in asked) > MAX_ACTIVE * tokens / 2
    # Requests may begin one after the other.
    assert len(calls.steps) <= longest + MAX_ACTIVE
    assert calls.steps.count(MAX_ACTIVE) >= min(one.done.counts.generated for one in asked) - 1


def test_requests_join_and_leave_while_others_go_on(server: Server, alone: list[tuple[str, str]]) -> None:
    asked = [server.ask(*REQUESTS[0])]
    for count, one in enumerate(REQUESTS[1:], 2):
        server.work(lambda count=count: len(asked[0].events) > 2 * count)  # type: ignore[misc]
        asked.append(server.ask(*one))
    server.work()
    assert texts(asked) == alone


def test_a_dropped_request_takes_one_more_step_and_harms_no_other(
    server: Server, alone: list[tuple[str, str]], watch: Callable[[LoadedModel], Calls]
) -> None:
    asked = [server.ask(*one) for one in REQUESTS]
    dropped = server.ask(TALE + "Drop this.", limited(2_000))
    calls = watch(server.model)
    server.work(lambda: len(dropped.events) > 3 and not any(one.ended for one in asked))
    before = len(calls.steps)
    dropped.ticket.stop()
    server.work(lambda: dropped.ended)
    assert dropped.done.stop_reason == "stopped" and len(calls.steps) <= before + 2
    server.work()
    assert texts(asked) == alone


def packed(cached: Cached) -> int:
    return max(layer.packed_tokens for layer in scheme_caches(cached.session.cache.cache))


def test_a_short_reply_packs_nothing_until_it_has_ended(server: Server) -> None:
    asked = [server.ask(f"{number}. {TALE[:400]}", limited(40)) for number in range(3)]
    server.work(lambda: all(len(one.events) > 20 for one in asked))
    assert [packed(one) for one in server.caches()] == [0, 0, 0]
    server.work()
    raw = [one.done.report for one in asked]
    assert [packed(one) for one in server.caches()] == [0, 0, 0]
    # What is told of the memory is what it takes now.
    assert server.told().bytes == sum(one.bytes for one in raw) >= sum(one.fp16_bytes for one in raw)
    server.queue.save(lambda: True)
    assert [packed(one) for one in server.caches()] == [0, 0, 0]
    server.queue.save(lambda: False)
    assert all(packed(one) >= 48 for one in server.caches())
    reports = [one.session.memory() for one in server.caches()]
    assert server.told().bytes == sum(one.bytes for one in reports) < sum(one.bytes for one in raw)


@pytest.mark.parametrize("is_late", [False, True])
def test_the_next_request_has_the_cache_at_once_packed_as_if_it_came_later(
    server: Server, is_late: bool
) -> None:
    first = server.alone(TALE, limited(1))
    assert [packed(one) for one in server.caches()] == [0]
    if is_late:
        server.queue.save(lambda: False)
    second = server.alone(TALE, limited(20))
    assert second.counts.reused == first.counts.prompt - 1 and len(server.caches()) == 1
    scheme = parse_scheme("turbo4")
    assert packed(server.caches()[0]) == scheme.packable(first.counts.prompt - scheme.sinks)


def test_only_one_cache_is_packed_while_another_request_waits(server: Server) -> None:
    for number in range(2):
        server.ask(f"{number}. {TALE[:400]}", limited(4))
    server.work()
    waits = server.ask("Hello!", limited(2))
    for count in (1, 2):
        server.queue.save(lambda: False)
        assert sum(packed(one) > 0 for one in server.caches()) == count
    server.work()
    assert waits.done


def test_a_long_reply_packs_many_tokens_at_a_time(server: Server) -> None:
    long = server.ask("Hello!", limited(HELD_BACK + 160))
    sizes = set()
    tail = parse_scheme("turbo4").tail
    while server.queue.has_work:
        server.queue.step(server.model)
        sizes |= {packed(one) for one in server.caches()}
    assert long.done.counts.generated > HELD_BACK + tail + TILE
    assert len(sizes) == 2 and max(sizes) >= HELD_BACK


@pytest.mark.parametrize("pack_prompts", [False, True])
def test_nothing_is_held_back_where_memory_is_short(
    paths: Paths, tiny: LoadedModel, pack_prompts: bool
) -> None:
    server = Server(paths, tiny)
    raw = server.alone(TALE[:400], limited(1), "fp16").report.allocated_bytes
    budget = None if pack_prompts else int(0.8 * raw)
    short = Server(paths, tiny, Limits(budget=budget, pack_prompts=pack_prompts))
    done = short.alone(TALE[:400], limited(100)).report
    assert done.layers[0].packed_tokens >= 48
    if budget is not None:
        assert done.allocated_bytes <= budget


def test_many_prompts_are_read_in_shorter_slices(server: Server) -> None:
    def slices() -> list[float | None]:
        pool = server.queue._pool
        return [] if pool is None else [one.session.cache.chunk_seconds for one in pool._busy]

    server.ask("Hello!", limited(2))
    server.work(lambda: bool(slices()))
    assert slices() == [CHUNK_SECONDS]
    server.work()
    for number in range(MAX_ACTIVE):
        server.ask(f"{number}. " + TALE, limited(2))
    server.work(lambda: len(slices()) == MAX_ACTIVE)
    assert slices()[:-1] == [ROUND_SECONDS / MAX_ACTIVE] * (MAX_ACTIVE - 1)


def test_dropped_requests_that_wait_are_forgotten_at_once(server: Server) -> None:
    busy = [server.ask("Hello!", limited(2_000)) for _ in range(MAX_ACTIVE)]
    server.queue.step(server.model)
    waiting = [server.ask("x" * 1_000, limited(1)) for _ in range(3)]
    dropped = [server.ask("x" * 1_000, limited(1)) for _ in range(20)]
    for one in [*dropped, waiting[1]]:
        one.ticket.stop()
    server.queue.step(server.model)
    assert all(isinstance(one.events[-1], Failed) for one in [*dropped, waiting[1]])
    assert not any(one.ended for one in busy) and [one.ended for one in waiting] == [False, True, False]
    for one in busy:
        one.ticket.stop()
    server.work()
    assert waiting[0].done and waiting[2].done


@pytest.mark.parametrize("after", [False, True])
def test_steps_of_a_batch_that_fails_are_run_one_by_one(
    server: Server, alone: list[tuple[str, str]], watch: Callable[[LoadedModel], Calls], after: bool
) -> None:
    server.ask("Two, so that the model is tried.", limited(2))
    server.ask("Two.", limited(2))
    server.work()
    calls = watch(server.model)

    def fail(tokens: mx.array, cache: Any) -> None:
        if tokens.shape[0] > 1 and len(calls.steps) % 3:
            raise RuntimeError("no memory")

    if after:
        calls.on_return = fail
    else:
        calls.on_call = fail
    asked = [server.ask(*one) for one in REQUESTS]
    server.work()
    assert texts(asked) == alone
    assert max(calls.steps) > 1


def test_only_the_request_whose_own_step_fails_ends(
    server: Server, alone: list[tuple[str, str]], watch: Callable[[LoadedModel], Calls]
) -> None:
    server.ask("Two, so that the model is tried.", limited(2))
    server.ask("Two.", limited(2))
    server.work()
    calls = watch(server.model)
    asked = [server.ask(*one) for one in REQUESTS]
    victim = server.ask("Fail here, please.", limited(40))
    server.work(lambda: len(victim.events) > 4)
    (active,) = [one for one in server.queue._active if one.ticket is victim.ticket]
    assert active.step is not None
    layers = {id(layer) for layer in active.step.held.cache}

    def fail(tokens: mx.array, cache: Any) -> None:
        for layer in cache:
            if {id(row) for row in getattr(layer, "rows", [layer])} & layers:
                raise RuntimeError("a broken cache")

    calls.on_return = fail
    server.work()
    assert isinstance(victim.events[-1], Failed)
    assert texts(asked) == alone


@pytest.mark.parametrize("step_down", [False, True])
def test_a_request_that_reaches_its_memory_budget_does_not_end_others(
    paths: Paths, tiny: LoadedModel, step_down: bool
) -> None:
    sampling = Sampling(temperature=1.0, seed=3, max_tokens=200)
    needed = Server(paths, tiny).alone(TALE, limited(1), "fp16").report.allocated_bytes
    server = Server(paths, tiny, Limits(budget=int(1.6 * needed), step_down=step_down))
    long, short = server.ask(TALE, sampling, "fp16"), server.ask("Hello!", limited(8), "fp16")
    server.work()
    assert short.done.counts.generated and short.done.scheme == "fp16"
    if step_down:
        assert [event for event in long.events if isinstance(event, SchemeChanged)]
    else:
        assert long.done.stop_reason == "memory"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("others")


@pytest.mark.parametrize(
    ("config", "batches"),
    [
        (models_of.SLIDING, True),
        (models_of.RECURRENT, False),
        (models_of.HYBRID, False),
        (models_of.EXPERTS, True),
        (models_of.SLIDING | {"sliding_window": 256}, True),
    ],
    ids=["short windows", "recurrent", "hybrid", "experts", "windows"],
)
def test_what_cannot_be_batched_is_run_one_by_one(
    paths: Paths,
    folder: Path,
    config: dict[str, Any],
    batches: bool,
    watch: Callable[[LoadedModel], Calls],
) -> None:
    name = f"{config['model_type']}{config.get('sliding_window', '')}"
    model = models.load(str(models_of.write(folder / name, config)))
    server = Server(paths, model)
    own = [server.alone(*one) for one in REQUESTS[:2]]
    calls = watch(model)
    again = Server(paths, model)
    asked = [again.ask(*one) for one in REQUESTS[:2]]
    again.work()
    assert [one.done.counts.generated for one in asked] == [done.counts.generated for done in own]
    assert texts(asked) == [(done.text, done.stop_reason) for done in own]
    assert (max(calls.steps) > 1) == batches


def test_caches_are_packed_before_they_are_released_for_lack_of_memory(
    paths: Paths, tiny: LoadedModel
) -> None:
    text = TALE
    measured = Server(paths, tiny)
    raw = measured.alone(text, limited(40)).report.allocated_bytes
    measured.queue.save(lambda: False)
    (one,) = measured.caches()
    assert 3 * one.bytes < 2 * raw
    budget = 2 * one.bytes + int(0.9 * raw)
    for shrinks in (False, True):
        server = Server(paths, tiny, Limits(budget=budget))
        first = server.alone("1. " + text, limited(40))
        server.alone("2. " + text, limited(40))
        if shrinks:
            server.queue.shrink(int(2.1 * one.bytes))
        else:
            server.alone("3. " + text, limited(2))
        assert len(server.caches()) == 3 - shrinks
        again = server.alone("1. " + text, limited(1))
        assert again.counts.reused == first.counts.prompt - 1


def test_a_cache_that_is_cut_for_another_request_is_saved_before(paths: Paths, tiny: LoadedModel) -> None:
    """As it would be copied if memory sufficed."""
    size = Server(paths, tiny).alone(TALE, limited(1)).report.allocated_bytes
    server = Server(paths, tiny, Limits(budget=int(1.2 * size)), RequestOptions())
    first = server.alone(TALE, limited(1))
    server.alone(TALE[: len(TALE) // 2], limited(1))
    assert [one.counts.restored for one in (first, server.alone(TALE, limited(1)))] == [
        0,
        first.counts.prompt - 1,
    ]
    server.queue.end("The test is over.")
