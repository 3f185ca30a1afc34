"""Token stores, and the deferred last token of a tail."""

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


def stored_numbers(store):
    return store.view()[0][0, 0, :, 0].tolist()


def test_a_pending_token_is_written_when_the_array_is_read(tail):
    assert tail.length == 21 and stored_numbers(tail) == list(range(21))
    assert not tail.has_pending


def change(name):
    return {
        "append": lambda store: store.append((tokens(21, 3),)),
        "append beyond the capacity": lambda store: store.append((tokens(21, 40),)),
        "append one": lambda store: store.append_deferred(tokens(21, 1)),
        "drop": lambda store: store.drop_front(3),
        "trim": lambda store: store.trim(1),
        "take": lambda store: store.take_front(4),
        "snapshot": lambda store: store.snapshot(),
    }[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("append", range(24)),
        ("append beyond the capacity", range(61)),
        ("append one", range(22)),
        ("drop", range(3, 21)),
        ("trim", range(20)),
        ("take", range(4, 21)),
        ("snapshot", range(21)),
    ],
)
def test_every_operation_keeps_the_pending_token(tail, name, expected):
    change(name)(tail)
    assert stored_numbers(tail) == list(expected) and tail.length == len(expected)


def test_appends_beyond_the_capacity_grow_the_store():
    store = Tail(growth=16)
    store.append((tokens(0, 16),))
    for number in range(16, 60):
        store.append_deferred(tokens(number, 1))
        assert store.length == number + 1 <= store.capacity
    assert stored_numbers(store) == list(range(60))


@pytest.mark.parametrize("token", [tokens(7, 1, mx.float32), tokens(7, 1, heads=1)])
def test_a_token_of_another_shape_or_dtype_is_written_at_once(token):
    store = Tail(growth=16)
    store.append((tokens(0, 7),))
    store.append_deferred(token)
    assert not store.has_pending and stored_numbers(store) == list(range(8))


def test_mark_written_replaces_the_array(tail):
    array, token = tail.parts
    other = array[...]
    other[:, :, 20:21] = token
    tail.mark_written(other)
    assert tail.arrays == (other,) and stored_numbers(tail) == list(range(21))


@pytest.mark.parametrize("kind", [TokenStore, Tail])
def test_a_snapshot_and_its_store_do_not_change_each_other(kind):
    store = kind(growth=16)
    store.append((tokens(0, 10),))
    before = store.snapshot()
    store.append((tokens(10, 3),))
    store.trim(5)
    store.append((tokens(50, 1),))
    assert stored_numbers(before) == list(range(10)) and stored_numbers(store) == [*range(8), 50]
    before.append((tokens(70, 1),))
    assert stored_numbers(store) == [*range(8), 50] and stored_numbers(before) == [*range(10), 70]


def test_a_transposed_prompt_is_copied_row_contiguous_into_an_emptied_tail():
    # Exactly the old capacity: MLX would alias an assignment to the whole array to the transposed prompt.
    store = Tail(growth=16)
    store.append((tokens(0, 20),))
    capacity = store.capacity
    store.trim(20)
    transposed = mx.random.normal((1, capacity, 2, 4)).astype(mx.float16).transpose(0, 2, 1, 3)
    store.append((transposed,))
    mx.eval(store.arrays)
    assert memoryview(store.arrays[0]).c_contiguous and mx.array_equal(store.view()[0], transposed)


def test_tokens_of_a_long_tail_are_written_at_once():
    store = Tail(growth=256)
    store.append((tokens(0, MAX_DEFERRED_TAIL_TOKENS + 1),))
    store.append_deferred(tokens(0, 1))
    assert not store.has_pending and store.length == MAX_DEFERRED_TAIL_TOKENS + 2


def test_reading_sizes_does_not_write_the_pending_token(tail):
    assert tail.allocated_bytes == tail.capacity * 2 * 4 * 2 and tail.bytes == 21 * 2 * 4 * 2
    assert tail.has_pending
