"""Stores of tokens, and the token that has_pending to be written."""

from __future__ import annotations

import mlx.core as mx
import pytest

from tqchat.kv.storage.token_store import MAX_DEFERRED_TAIL_TOKENS, Tail, TokenStore


def tokens(first, count, dtype=mx.float16, heads=2):
    return mx.broadcast_to(mx.arange(first, first + count, dtype=dtype)[:, None], (1, heads, count, 4))


@pytest.fixture
def tail():
    store = Tail(growth=16)
    store.append((tokens(0, 20),))
    store.append_deferred(tokens(20, 1))
    assert store.has_pending
    return store


def held(store):
    return store.view()[0][0, 0, :, 0].tolist()


def test_a_token_that_waits_is_held_and_written_when_it_is_asked_for(tail):
    assert tail.length == 21 and held(tail) == list(range(21))
    assert not tail.has_pending


def change(name):
    return {
        "append": lambda store: store.append((tokens(21, 3),)),
        "append more than there is capacity for": lambda store: store.append((tokens(21, 40),)),
        "append one": lambda store: store.append_deferred(tokens(21, 1)),
        "drop": lambda store: store.drop_front(3),
        "trim": lambda store: store.trim(1),
        "take": lambda store: store.take_front(4),
        "snapshot": lambda store: store.snapshot(),
    }[name]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("append", range(24)),
        ("append more than there is capacity for", range(61)),
        ("append one", range(22)),
        ("drop", range(3, 21)),
        ("trim", range(20)),
        ("take", range(4, 21)),
        ("snapshot", range(21)),
    ],
)
def test_whatever_is_done_a_token_that_waits_is_not_lost(tail, name, left):
    change(name)(tail)
    assert held(tail) == list(left) and tail.length == len(left)


def test_room_that_is_full_is_written_to_at_once():
    store = Tail(growth=16)
    store.append((tokens(0, 16),))
    for number in range(16, 60):
        store.append_deferred(tokens(number, 1))
        assert store.length == number + 1 <= store.capacity
    assert held(store) == list(range(60))


@pytest.mark.parametrize("token", [tokens(7, 1, mx.float32), tokens(7, 1, heads=1)])
def test_only_a_token_like_those_held_waits(token):
    store = Tail(growth=16)
    store.append((tokens(0, 7),))
    store.append_deferred(token)
    assert not store.has_pending and held(store) == list(range(8))


def test_what_is_written_elsewhere_is_taken(tail):
    array, token = tail.parts
    other = array[...]
    other[:, :, 20:21] = token
    tail.mark_written(other)
    assert tail.arrays == (other,) and held(tail) == list(range(21))


@pytest.mark.parametrize("kind", [TokenStore, Tail])
def test_a_snapshot_stays_what_it_was(kind):
    store = kind(growth=16)
    store.append((tokens(0, 10),))
    before = store.snapshot()
    store.append((tokens(10, 3),))
    store.trim(5)
    store.append((tokens(50, 1),))
    assert held(before) == list(range(10)) and held(store) == [*range(8), 50]
    before.append((tokens(70, 1),))
    assert held(store) == [*range(8), 50] and held(before) == [*range(10), 70]


def test_a_tail_that_emptied_takes_a_turned_prompt_row_by_row():
    # As many as there was capacity for: an assignment of all of it would be the prompt itself, as it lies.
    store = Tail(growth=16)
    store.append((tokens(0, 20),))
    capacity = store.capacity
    store.trim(20)
    turned = mx.random.normal((1, capacity, 2, 4)).astype(mx.float16).transpose(0, 2, 1, 3)
    store.append((turned,))
    mx.eval(store.arrays)
    assert memoryview(store.arrays[0]).c_contiguous and mx.array_equal(store.view()[0], turned)


def test_a_long_tail_is_written_to_rather_than_written_again():
    store = Tail(growth=256)
    store.append((tokens(0, MAX_DEFERRED_TAIL_TOKENS + 1),))
    store.append_deferred(tokens(0, 1))
    assert not store.has_pending and store.length == MAX_DEFERRED_TAIL_TOKENS + 2


def test_sizes_are_told_without_writing_the_token_that_waits(tail):
    assert tail.allocated_bytes == tail.capacity * 2 * 4 * 2 and tail.bytes == 21 * 2 * 4 * 2
    assert tail.has_pending
