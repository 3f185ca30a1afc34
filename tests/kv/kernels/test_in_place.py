"""Caches whose newest token is written into the tail's memory, by emulated kernels."""

from __future__ import annotations

import copy
import random
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from tests.kv.kernels.emulator import CPLUSPLUS, Emulator, Everything, shared_folder, write_into
from tests.kv.test_families import short
from tqchat.kv.attention import routing
from tqchat.kv.cache import SchemeCache
from tqchat.kv.kernels import decode, encode, fused, in_place, launch, workspace
from tqchat.kv.kernels.device import Kernels
from tqchat.kv.kernels.plan import have_equal_fine
from tqchat.kv.kernels.workspace import Workspace
from tqchat.kv.storage import joint_encode, side
from tqchat.kv.storage.placeholders import PlaceholderNotAttended
from tqchat.kv.storage.rounding_history import Rounding
from tqchat.kv.storage.token_store import TokenStore
from tqchat.kv.window import WindowCache

pytestmark = pytest.mark.skipif(CPLUSPLUS is None, reason="no C++ compiler")

HEADS, GROUP, DIM = 2, 1, 64
SCALE = 0.1


class EmulatedKernels(Kernels):
    """Kernels that are run by an emulator. Those that write into their inputs run as late as possible: once
    another one that runs after them does, or their output is waited for.

    Attributes:
        copies: Arrays copied.
        launched: Launches: their outputs, and what they run after.
        waiting: Those that have not run: their outputs, and functions that run them.
    """

    def __init__(self, emulator, language, tensor_cores):
        super().__init__(language, tensor_cores)
        self.trusted = Everything()
        self.emulator = emulator
        self.workspace = Workspace()
        self.copies = self.in_place = 0
        self.last_output = None
        self.launched, self.waiting = [], []

    def compiled(self, spec):
        return lambda inputs, **launch_: self._launch(spec, inputs, launch_)

    def _launch(self, spec, inputs, launch_):
        outputs = [
            mx.zeros(*pair) for pair in zip(launch_["output_shapes"], launch_["output_dtypes"], strict=True)
        ]
        mx.eval(outputs)
        working_memory = self.workspace.of_thread.array

        def run():
            found = self.emulator.run(spec, inputs, launch_, working_memory)
            for array, result in zip(outputs, found, strict=True):
                is_bfloat16 = result.dtype == mx.bfloat16
                write_into(array, np.array(result.view(mx.uint16) if is_bfloat16 else result))

        if spec.kernel == "copy":
            mx.eval(inputs[0])
            self.finish(inputs[1])
            self.copies += 1
            run()
            return outputs
        if spec.kernel.startswith("decode") or "words" in spec.outputs:
            mx.eval(inputs)
            run()
            return outputs
        self.in_place += spec.kernel.startswith("encode")
        after = [
            array
            for name, array in zip(spec.inputs, inputs, strict=True)
            if name in ("before", "partial") or name.startswith("after")
        ]
        self.launched.append((outputs, after))
        self.waiting.append((outputs, run if spec.kernel != "join" else lambda: None))
        if spec.kernel.startswith("attend") and self.last_output is not None:
            before = inputs[spec.inputs.index("before")]
            assert address(self.last_output) in self.needed(before), "it must not run before the last launch"
        if "output" in spec.outputs:
            (self.last_output,) = outputs
        return outputs

    def needed(self, output):
        """Addresses of the outputs of launches that run before this one, and of its own."""
        found = {address(output)}
        for outputs, after in reversed(self.launched):
            if found.intersection(map(address, outputs)):
                found.update(map(address, after))
        return found

    def finish(self, output=None):
        """Run what waits: all launches, or that with this output and those that it runs after."""
        needed = None if output is None else self.needed(output)
        due = [one for one in self.waiting if needed is None or needed.intersection(map(address, one[0]))]
        self.waiting = [one for one in self.waiting if not any(one is other for other in due)]
        for _, run in due:
            run()


def address(array):
    """Of an array's memory: MLX passes new objects to compiled functions."""
    viewed = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.asarray(memoryview(viewed)).ctypes.data


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    return Emulator(shared_folder(tmp_path_factory))


@pytest.fixture(params=["metal", "cuda"])
def kernels(request, monkeypatch, emulator):
    emulated = EmulatedKernels(emulator, request.param, tensor_cores=request.param == "cuda")
    for module in (fused, launch, workspace, encode, decode, in_place, joint_encode):
        monkeypatch.setattr(module, "kernels", lambda: emulated)
    waiting = TokenStore.arrays.fget

    def arrays(store):
        if store._written is not None:
            emulated.finish(store._written[0])
        return waiting(store)

    monkeypatch.setattr(TokenStore, "arrays", TokenStore.arrays.getter(arrays))
    monkeypatch.setattr(routing, "_is_installed", True)
    launch._layout_factory.cache_clear()
    mx.disable_compile()
    yield emulated
    if mx.default_device() != mx.cpu:  # the engine's setting
        mx.enable_compile()
    launch._layout_factory.cache_clear()


class PlainAttention(fused.FusedAttention):
    """No kernels."""

    def __call__(self, *arguments):
        return None


class Pair:
    """A cache with kernels and its twin without, which get the same tokens."""

    def __init__(self, kernels, cache):
        self.kernels = kernels
        self.cache, self.twin = cache, copy.deepcopy(cache)
        self.prepare()
        self.outputs = []

    def prepare(self, placeholders=True):
        for one in (self.cache, self.twin):
            one.uses_placeholders = placeholders
            one.route = SimpleNamespace(is_active=True)
        self.cache.share(self.kernels.workspace)
        self.twin._fused = PlainAttention()

    def branch(self):
        other = copy.copy(self)
        other.cache, other.twin = copy.deepcopy((self.cache, self.twin))
        other.prepare(self.cache.uses_placeholders)
        return other

    def append(self, count, dtype=mx.float16):
        x = mx.random.normal((1, HEADS, count, DIM)).astype(dtype)
        fetched = [cache.update_and_fetch(x, x + 1) for cache in (self.cache, self.twin)]
        assert [array.shape for array in fetched[0]] == [array.shape for array in fetched[1]]
        return fetched

    def attend(self, fetched, rows, mask="causal", dtype=mx.float16):
        queries = mx.random.normal((1, HEADS * GROUP, rows, DIM)).astype(dtype)
        self.outputs.append(
            [
                routing.routed_attention(queries, *pair, cache=cache, scale=SCALE, mask=mask)
                for cache, pair in zip((self.cache, self.twin), fetched, strict=True)
            ]
        )

    def step(self, rows=1):
        self.attend(self.append(rows), rows)
        assert self.cache.packed_tokens == self.twin.packed_tokens

    def trim(self, count):
        for cache in (self.cache, self.twin):
            cache.trim(count)

    def assert_same_tokens(self):
        (_, arrays), (_, expected) = self.cache.state, self.twin.state
        assert arrays.keys() == expected.keys()
        for name, array in arrays.items():
            assert mx.array_equal(array, expected[name]), name

    def assert_same_outputs(self, tolerance=4e-3):
        self.kernels.finish()
        for output, expected in self.outputs:
            limit = tolerance * mx.abs(expected).max().item()
            assert mx.abs(output - expected).max().item() <= limit


def filled(kernels, scheme="turbo4", cache=None):
    """A pair with packed tokens."""
    mx.random.seed(8)
    cache = SchemeCache(short(scheme)) if cache is None else cache
    x = mx.random.normal((1, HEADS, 150, DIM)).astype(mx.float16)
    cache.update_and_fetch(x, x)
    cache.observe(mx.random.normal((1, HEADS * GROUP, 8, DIM)))
    cache.pack_due()
    return Pair(kernels, cache)


@pytest.mark.parametrize("scheme", ["turbo4", "turbo0v4", "trellis2", "turbo8v3", "turbo6v3", "trellis4v2"])
def test_steps_and_packing_have_the_tokens_of_plain_operations(kernels, scheme):
    pair = filled(kernels, scheme)
    packed = pair.cache.packed_tokens
    for _ in range(40):
        pair.step()
    assert pair.cache.packed_tokens >= packed + 32
    assert kernels.in_place == 2, "two packings, each by one launch in the stores' own memory"
    pair.assert_same_tokens()
    pair.assert_same_outputs()


class UnlessInPlace(set):
    """Plans of which each is trusted, except those of packing in place that are not added."""

    def __contains__(self, plan):
        return not isinstance(plan, in_place.InPlacePlan) or super().__contains__(plan)


@pytest.mark.parametrize("is_right", [True, False])
def test_packing_in_place_is_verified_on_first_use(kernels, is_right):
    kernels.trusted = UnlessInPlace()
    verify = kernels.verify_first_use

    def verify_once_run(plan, inputs, reference, candidate, error):
        def run():
            result = candidate()
            kernels.finish()
            if not is_right:
                result[-1][1][:] = 1
            return result

        return verify(plan, inputs, reference, run, error)

    kernels.verify_first_use = verify_once_run
    pair = filled(kernels, "turbo3")
    for _ in range(40):
        pair.step()
    assert bool(kernels.refused) != is_right
    assert all(isinstance(plan, in_place.InPlacePlan) for plan in kernels.refused)
    pair.assert_same_tokens()
    pair.assert_same_outputs()


def test_stores_move_to_more_room_between_launches(kernels, monkeypatch):
    """Tails, fine and packed tokens, each of which has room for a few more than it holds."""
    for name in ("FINE_GROWTH_TOKENS", "GPU_GROWTH_TOKENS"):
        monkeypatch.setattr(side, name, 8)
    cache = SchemeCache(short("trellis2"))
    for one in cache.sides:
        one.packed.growth = 8
    pair = filled(kernels, cache=cache)
    moved = set()
    for _ in range(40):
        memories = {name: store.memory for name, store in pair.cache.key_side.stores.items()}
        pair.step()
        stores = pair.cache.key_side.stores
        moved |= {name for name, memory in memories.items() if stores[name].memory is not memory}
    assert moved == {"packed", "fine", "recent"}
    assert kernels.in_place == 2 and kernels.copies >= 8
    pair.assert_same_tokens()
    pair.assert_same_outputs()


def test_what_is_read_while_packing_waits_has_all_tokens(kernels):
    pair = filled(kernels, "trellis2")
    packed = pair.cache.packed_tokens
    while pair.cache.packed_tokens == packed:
        pair.step()
    branch = pair.branch()
    pair.assert_same_tokens()
    for one in (pair, branch):
        one.append(3)
        one.trim(2)
        for _ in range(20):
            one.step()
    for one in (pair, branch):
        one.assert_same_tokens()
        one.assert_same_outputs()


@pytest.mark.parametrize("heads", [1, 2])
def test_the_ends_of_runs_of_rounding_leave_few_vectors(kernels, monkeypatch, heads):
    monkeypatch.setitem(globals(), "HEADS", heads)
    pair = filled(kernels)
    for one in (pair.cache, pair.twin):
        one.rounding = dict.fromkeys(("key", "value"), Rounding(((135, 4, 1),)))
    for _ in range(40):
        pair.step()
    assert kernels.in_place == 1, "the first packing has tokens of two formats"
    pair.assert_same_tokens()
    pair.assert_same_outputs()


def test_memory_of_a_prompt_is_released_when_it_is_packed(kernels):
    pair = filled(kernels, "trellis2")
    pair.step()
    pair.attend(pair.append(400), 400)
    for one in (pair.cache, pair.twin):
        one.pack_due()
    own, others = ([side.allocated_bytes for side in one.sides] for one in (pair.cache, pair.twin))
    assert own == others
    for _ in range(20):
        pair.step()
    assert kernels.in_place
    pair.assert_same_tokens()
    pair.assert_same_outputs()


def test_fine_parts_that_differ_become_alike(kernels):
    """As after a change from a scheme that rounded the values alone, whose rounding ends somewhere."""
    pair = filled(kernels, "turbo3")
    pair.step()
    cache = pair.cache
    cache.value_side.fine.growth = 40
    cache.value_side.fine.take_front(0)
    assert not have_equal_fine(*cache.sides)
    packed = cache.packed_tokens
    while cache.packed_tokens == packed:
        cache.append(*mx.random.normal((2, 1, HEADS, 1, DIM)).astype(mx.float16))
        cache.pack_due()
    cache.value_side.fine.growth = cache.key_side.fine.growth
    cache.append(*mx.random.normal((2, 1, HEADS, 32, DIM)).astype(mx.float16))
    cache.pack_due()
    assert have_equal_fine(*cache.sides)


@pytest.mark.parametrize("scheme", ["affine4", "turbo8v4", "turbo3"])
def test_what_is_encoded_by_other_operations_is_read_after_the_launches_that_wrote_it(
    kernels, monkeypatch, scheme
):
    """With the room of a tail on a GPU, which is written in the same memory over many steps."""
    pair = filled(kernels, scheme)
    for one in pair.cache.sides:
        one.recent.growth = 80
    encode_plainly = joint_encode.encode

    def at_once(format_, x):
        block = encode_plainly(format_, x)
        mx.eval(block)
        return block

    monkeypatch.setattr(joint_encode, "encode", at_once)
    for _ in range(3):
        pair.step()
    pair.trim(24)  # the launches that wrote encoded tokens cannot write in their place again
    for _ in range(60):
        pair.step()
    pair.assert_same_tokens()
    pair.assert_same_outputs()


def test_packed_tokens_of_another_thread_are_waited_for(kernels):
    pair = filled(kernels)
    packed = pair.cache.packed_tokens
    while pair.cache.packed_tokens == packed:
        pair.step()
    assert kernels.in_place
    kernels.finish()
    mx.eval(pair.outputs, pair.twin.state[1])

    def in_another_thread():
        kernels.last_output = None
        for _ in range(20):
            pair.step()
        kernels.finish()
        mx.eval(pair.outputs)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(in_another_thread).result()
    pair.assert_same_tokens()
    pair.assert_same_outputs()


@pytest.mark.parametrize("scheme", ["turbo4", "turbo3", "trellis2"])
def test_steps_that_pack_attend_to_the_tokens_before_where_nothing_stands_for_decoded_ones(kernels, scheme):
    pair = filled(kernels, scheme)
    for one in (pair.cache, pair.twin):
        one.uses_placeholders = False
    packed = pair.cache.packed_tokens
    for _ in range(36):
        pair.step()
    assert pair.cache.packed_tokens > packed
    pair.assert_same_outputs()
    pair.assert_same_tokens()


def test_the_tail_is_written_in_its_own_memory(kernels):
    pair = filled(kernels)
    pair.step()
    memories = [side.recent.memory for side in pair.cache.sides]
    for _ in range(3):
        pair.step()
        assert [side.recent.memory for side in pair.cache.sides] == memories
        assert all(side.recent.writer is not None for side in pair.cache.sides)
    assert not kernels.copies


def test_layers_that_share_a_cache_read_the_token_that_the_first_wrote(kernels):
    pair = filled(kernels)
    for _ in range(4):
        pair.step()
        for _ in range(2):
            pair.attend([cache.keys_and_values() for cache in (pair.cache, pair.twin)], 1)
    assert not kernels.copies
    pair.assert_same_outputs()
    pair.assert_same_tokens()


def test_branches_do_not_change_each_other(kernels):
    pair = filled(kernels)
    pair.step()
    other = pair.branch()
    third = pair.branch()
    third.trim(2)
    for _ in range(3):
        for one in (pair, other, third):
            one.step()
    for one in (pair, other, third):
        one.assert_same_tokens()
        one.assert_same_outputs()


def test_rejected_drafts_are_replaced(kernels):
    pair = filled(kernels)
    for rejected in (1, 3, 0):
        pair.step(rows=4)
        pair.trim(rejected)
        pair.step()
        pair.step()
    pair.assert_same_tokens()
    pair.assert_same_outputs()


@pytest.mark.parametrize("scheme", ["turbo4", "turbo0v4"])
def test_tokens_leave_a_window(kernels, scheme):
    pair = filled(kernels, cache=WindowCache(140, short(scheme)))
    for _ in range(20):
        pair.step()
    keys = pair.cache.key_side
    assert keys.length == 140 and (keys.recent.start > 0) == (scheme == "turbo0v4")
    pair.assert_same_tokens()
    pair.assert_same_outputs()


def test_another_thread_continues_with_a_copy(kernels):
    pair = filled(kernels)
    for _ in range(3):
        pair.step()
    kernels.finish()
    mx.eval(pair.outputs, pair.twin.state[1])
    tail = pair.cache.key_side.recent
    memory, order = tail.memory, tail.writer.order

    def in_another_thread():
        kernels.last_output = None  # launches of threads are ordered by the copies
        pair.step()
        kernels.finish()
        mx.eval(tail.memory, pair.outputs[-1])
        return tail.writer.order

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_another_thread).result() is not order
    assert tail.memory is not memory and kernels.copies == 2
    pair.assert_same_tokens()
    pair.assert_same_outputs()


def test_steady_steps_append_and_attend_by_the_short_path(kernels, monkeypatch):
    pair = filled(kernels)
    for _ in range(2):
        pair.step()
    with monkeypatch.context() as patch:
        patch.setattr(pair.cache, "append", None)
        patch.setattr(pair.cache, "attend", None)
        for _ in range(5):
            pair.step()
    assert pair.cache.offset == pair.twin.offset == 157
    assert [side.length for side in pair.cache.sides] == [157, 157]
    pair.assert_same_tokens()
    pair.assert_same_outputs()


@pytest.mark.parametrize("trimmed", [3, 40])
def test_steps_after_a_trim_and_packing(kernels, trimmed):
    pair = filled(kernels)
    for _ in range(3):
        pair.step()
    pair.trim(trimmed)
    pair.step()
    pair.step(rows=17)
    pair.step()
    for cache in (pair.cache, pair.twin):
        cache.pack_due()
    for _ in range(3):
        pair.step()
    pair.assert_same_tokens()
    pair.assert_same_outputs()


def test_a_steady_step_that_is_not_attended_is_reported(kernels):
    pair = filled(kernels)
    for _ in range(3):
        pair.step()
    pair.append(1)
    with pytest.raises(PlaceholderNotAttended):
        pair.append(1)


def test_steps_are_not_steady_without_routed_attention(kernels):
    pair = filled(kernels)
    for _ in range(3):
        pair.step()
    for cache in (pair.cache, pair.twin):
        cache.route = SimpleNamespace(is_active=False)
    (keys, values), expected = pair.append(1)
    assert mx.isfinite(keys).all() and mx.array_equal(keys, expected[0])
    assert mx.array_equal(values, expected[1])


@pytest.mark.parametrize("change", ["mask", "queries", "token", "rows"])
def test_a_step_unlike_the_last_is_served_all_the_same(kernels, change):
    pair = filled(kernels)
    for _ in range(3):
        pair.step()
    dtype = mx.bfloat16 if change == "queries" else mx.float16
    pair.attend(
        pair.append(1, mx.float32 if change == "token" else mx.float16),
        2 if change == "rows" else 1,
        None if change == "mask" else "causal",
        dtype,
    )
    for _ in range(3):
        pair.step()
    pair.assert_same_tokens()
    pair.kernels.finish()
    *others, last = pair.outputs[3:]
    pair.outputs = [[x.astype(mx.float32) for x in outputs] for outputs in (*others, last)]
    pair.assert_same_outputs(8e-3 if change == "queries" else 4e-3)


@pytest.mark.parametrize(
    ("seed", "scheme", "placeholders"), [(0, "turbo4", True), (1, "turbo3", True), (2, "trellis2", False)]
)
def test_any_sequence_of_steps_has_the_tokens_of_plain_operations(kernels, seed, scheme, placeholders):
    choose = random.Random(seed)
    pairs = [filled(kernels, scheme)]
    for one in (pairs[0].cache, pairs[0].twin):
        one.uses_placeholders = placeholders
    for _ in range(25):
        pair = choose.choice(pairs)
        match choose.choice(["step"] * 8 + ["draft", "trim", "branch", "read", "chunk", "append"]):
            case "step":
                pair.step()
            case "draft":
                pair.step(rows=3)
                pair.trim(choose.randint(0, 2))
            case "trim":
                pair.trim(choose.randint(1, 4))
            case "branch" if len(pairs) < 4:
                pairs.append(pair.branch())
            case "read":
                pair.assert_same_tokens()
            case "chunk":
                pair.step(rows=9)
    for pair in pairs:
        pair.assert_same_tokens()
        pair.assert_same_outputs()
