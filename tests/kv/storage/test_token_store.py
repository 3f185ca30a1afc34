"""Token stores, and the deferred last token of a tail."""

from __future__ import annotations

import itertools
import random

import mlx.core as mx
import numpy as np
import pytest

from tests.kv.kernels.emulator import write_into
from tqchat.kv.storage.token_store import MAX_DEFERRED_TAIL_TOKENS, RoomyArray, Tail, TokenStore


def tokens(first, count, dtype=mx.float16, heads=2):
    return mx.broadcast_to(mx.arange(first, first + count, dtype=dtype)[:, None], (1, heads, count, 4))


@pytest.fixture
def tail():
    store = Tail(growth=16)
    store.append((tokens(0, 20),))
    store.append_deferred(tokens(20, 1))
    assert store.pending is not None
    return store


def stored_numbers(store):
    return store.view()[0][0, 0, :, 0].tolist()


def test_a_pending_token_is_written_when_the_array_is_read(tail):
    assert tail.length == 21 and stored_numbers(tail) == list(range(21))
    assert tail.pending is None


@pytest.mark.parametrize("make", [TokenStore, Tail])
def test_a_store_is_restored_with_the_room_behind_its_tokens(make):
    array = mx.contiguous(mx.concatenate([tokens(0, 20), mx.zeros((1, 2, 12, 4), mx.float16)], axis=2))
    store = make(growth=16)
    store.restore([RoomyArray(array, 20)])
    assert stored_numbers(store) == list(range(20))
    assert store.capacity == 32
    copied = store.snapshot()
    store.append((tokens(20, 8),))
    assert store.capacity == 32 and stored_numbers(store) == list(range(28))
    assert stored_numbers(copied) == list(range(20))
    store.append((tokens(28, 8),))
    assert stored_numbers(store) == list(range(36))


def test_a_restored_tail_defers_a_token_to_the_room_behind_it():
    array = mx.contiguous(mx.concatenate([tokens(0, 20), mx.zeros((1, 2, 12, 4), mx.float16)], axis=2))
    store = Tail(growth=16)
    store.restore([RoomyArray(array, 20)])
    store.append_deferred(tokens(20, 1))
    assert store.pending is not None
    assert stored_numbers(store) == list(range(21))


def test_arrays_of_different_room_are_copied():
    long, short = (mx.zeros((1, 2, count, 4), mx.float16) for count in (32, 28))
    store = TokenStore(growth=16)
    store.restore([RoomyArray(long, 20), RoomyArray(short, 20)])
    assert store.length == 20
    assert {array.shape[2] for array in store.arrays} == {store.capacity} == {32}


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


def test_a_store_that_expects_tokens_grows_once():
    store = TokenStore(growth=16)
    store.expected = 300
    capacities = set()
    for first in range(0, 300, 50):
        store.append((tokens(first, 50),))
        capacities.add(store.capacity)
    assert capacities == {300} and stored_numbers(store) == list(range(300))
    store.expected = 0
    store.append((tokens(300, 1),))
    assert stored_numbers(store) == list(range(301)) and store.capacity <= 300 + 16


def test_room_for_tokens_that_do_not_come_is_freed():
    store = TokenStore(growth=16)
    store.expected = 1000
    store.append((tokens(0, 50),))
    assert store.capacity == 1000
    store.free_spare_room()
    assert store.capacity == 1000
    store.expected = 0
    store.free_spare_room()
    assert store.capacity <= 50 + 16 and stored_numbers(store) == list(range(50))


def test_room_that_growing_leaves_is_not_freed():
    store = TokenStore(growth=16, share=8)
    store.append((tokens(0, 1000),))
    store.append((tokens(1000, 9),))  # grows by 112
    arrays = store.arrays
    assert store.capacity - store.length > 16
    store.free_spare_room()
    assert store.arrays is arrays


def test_long_packed_storage_grows_by_a_share_of_its_length():
    store = TokenStore(growth=16, share=8)
    capacities = []
    for number in range(1000):
        store.append((tokens(number, 1, mx.float32),))
        if store.capacity not in capacities:
            capacities.append(store.capacity)
            assert 0 < store.capacity - number <= max(16, number // 8)
    assert stored_numbers(store) == list(range(1000))
    steps = [after - before for before, after in itertools.pairwise(capacities)]
    assert steps == sorted(steps) and steps[0] == 16 and steps[-1] > 64


@pytest.mark.parametrize("token", [tokens(7, 1, mx.float32), tokens(7, 1, heads=1)])
def test_a_token_of_another_shape_or_dtype_is_written_at_once(token):
    store = Tail(growth=16)
    store.append((tokens(0, 7),))
    store.append_deferred(token)
    assert store.pending is None and stored_numbers(store) == list(range(8))


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
    assert store.pending is None and store.length == MAX_DEFERRED_TAIL_TOKENS + 2


def test_reading_sizes_does_not_write_the_pending_token(tail):
    assert tail.allocated_bytes == tail.capacity * 2 * 4 * 2 and tail.bytes == 21 * 2 * 4 * 2
    assert tail.pending is not None


class Launches:
    """Launches that write pending tokens, as an attention kernel does: a ``TailWriter``.

    Args:
        is_late: Whether they run only once a copy waits for them, and not at once.
    """

    def __init__(self, is_late):
        self.order = self
        self.is_late = is_late
        self.count = 0
        self._waiting = []

    def write(self, tail):
        """Launch, if a token is pending."""
        if tail.pending is None:
            return
        memory, token = tail.launch_arrays(self.order)
        memory, slot = memory[...], tail.start + tail.length - 1

        def run():
            mx.eval(memory, token)
            contents = np.array(memory)
            contents[:, :, slot : slot + 1] = np.asarray(token)
            write_into(memory, contents)

        self._waiting.append(run)
        self.count += 1
        tail.mark_written(self)
        if not self.is_late:
            self.finish()

    def finish(self):
        while self._waiting:
            self._waiting.pop(0)()

    def copy_of(self, array, capacity):
        mx.eval(array)
        self.finish()
        room = mx.zeros((*array.shape[:2], capacity - array.shape[2], array.shape[3]), array.dtype)
        return mx.array(np.array(mx.concatenate([array, room], axis=2)))


@pytest.fixture(params=["at once", "late"])
def launches(request):
    return Launches(request.param == "late")


def written(launches, first, count):
    """A tail whose last token was written by a launch."""
    store = Tail(growth=16)
    store.append((tokens(first, count - 1),))
    store.append_deferred(tokens(first + count - 1, 1))
    launches.write(store)
    assert store.writer is launches and store.length == count
    return store


def test_tokens_that_launches_wrote_are_read_after_them(launches):
    store = written(launches, 0, 10)
    for number in range(10, 14):
        memory = store.memory
        store.append_deferred(tokens(number, 1))
        launches.write(store)
        assert store.memory is memory
    assert stored_numbers(store) == list(range(14))


def test_a_reader_that_is_evaluated_late_sees_the_tokens_of_its_time(launches):
    store = written(launches, 0, 10)
    view = store.view()[0]
    for number in range(20, 24):
        store.append_deferred(tokens(number, 1))
        launches.write(store)
    assert view[0, 0, :, 0].tolist() == list(range(10))
    assert stored_numbers(store) == [*range(10), *range(20, 24)]


def test_only_one_of_two_branches_is_written_in_place(launches):
    store = written(launches, 0, 10)
    branch = store.snapshot()
    store.append_deferred(tokens(50, 1))
    branch.append_deferred(tokens(70, 1))
    assert store.pending is not None and branch.pending is None
    launches.write(store)
    for number in (51, 52):
        store.append_deferred(tokens(number, 1))
        launches.write(store)
        branch.append_deferred(tokens(number + 20, 1))
        assert branch.pending is not None, "it has a buffer of its own now"
        launches.write(branch)
    assert stored_numbers(store) == [*range(10), 50, 51, 52]
    assert stored_numbers(branch) == [*range(10), 70, 71, 72]


@pytest.mark.parametrize("trimmed", [1, 3])
def test_slots_of_trimmed_tokens_are_not_written_in_place(launches, trimmed):
    store = written(launches, 0, 10)
    branch = store.snapshot()
    store.trim(trimmed)
    store.append_deferred(tokens(50, 1))
    assert store.pending is None
    store.append_deferred(tokens(51, 1))
    assert store.pending is not None
    launches.write(store)
    assert stored_numbers(branch) == list(range(10))
    assert stored_numbers(store) == [*range(10 - trimmed), 50, 51]


def test_a_trim_drops_the_pending_token(tail):
    tail.trim(2)
    assert tail.pending is None and stored_numbers(tail) == list(range(19))
    tail.append_deferred(tokens(50, 1))
    assert tail.pending is None and stored_numbers(tail) == [*range(19), 50]


def test_launches_of_another_order_get_a_copy(launches):
    store, other = written(launches, 0, 10), Launches(launches.is_late)
    memory = store.memory
    store.append_deferred(tokens(10, 1))
    other.write(store)
    assert store.memory is not memory and store.writer is other
    assert stored_numbers(store) == list(range(11))


@pytest.mark.parametrize("was_written", [False, True])
def test_a_copy_in_its_own_buffer_can_be_written_without_changing_the_tail(launches, tail, was_written):
    if was_written:
        launches.write(tail)
        tail.append_deferred(tokens(21, 1))
    copied = tail.with_own_buffer()
    copied.pending = tokens(70, 1)
    launches.write(tail)
    launches.write(copied)
    assert stored_numbers(tail) == list(range(tail.length))
    assert stored_numbers(copied) == [*range(tail.length - 1), 70]


def test_a_tail_that_was_read_after_a_trim_is_written_in_place_again(launches):
    store = written(launches, 0, 10)
    store.trim(3)
    assert stored_numbers(store) == list(range(7))
    store.append_deferred(tokens(50, 1))
    assert store.pending is not None


@pytest.mark.parametrize("seed", range(12))
def test_any_sequence_of_operations_keeps_the_tokens_of_all_branches(launches, seed):
    choose = random.Random(seed)
    first = Tail(growth=8)
    first.append((tokens(0, 3),))
    branches = [(first, [0, 1, 2])]
    readers = []
    for step in range(120):
        store, numbers = choose.choice(branches)
        number = 3 + 10 * step  # exact in float16
        match choose.choice(["token"] * 6 + ["tokens", "trim", "drop", "branch", "read", "leave", "take"]):
            case "token":
                store.append_deferred(tokens(number, 1))
                numbers.append(number)
                if choose.random() < 0.8:
                    launches.write(store)
            case "tokens":
                store.append((tokens(number, 4),))
                numbers += range(number, number + 4)
            case "trim" if len(numbers) > 4:
                count = choose.randint(0, 3)
                store.trim(count)
                del numbers[len(numbers) - count :]
            case "drop" if len(numbers) > 4:
                count = choose.randint(0, 3)
                store.drop_front(count)
                del numbers[:count]
            case "take" if len(numbers) > 4:
                (front,) = store.take_front(2)
                readers.append((front, numbers[:2]))
                del numbers[:2]
            case "branch":
                branches.append((store.snapshot(), list(numbers)))
            case "read":
                readers.append((store.view()[0], list(numbers)))
            case "leave" if len(branches) > 2:
                branches.pop(0)
    readers += [(store.view()[0], numbers) for store, numbers in branches]
    assert launches.count > 10
    for array, numbers in readers:
        assert array[0, 0, :, 0].tolist() == numbers
