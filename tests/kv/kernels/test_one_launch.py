"""What a layer packs, encoded by one launch of an emulated kernel."""

from __future__ import annotations

import re
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from tests.kv.kernels.emulator import CPLUSPLUS, Emulator, shared_folder
from tqchat.kv.codec.fitting import NO_STATISTICS, QueryStatistics
from tqchat.kv.codec.formats import make_fine_format, make_format
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.kernels import in_place
from tqchat.kv.kernels.decode import decode_inputs, decode_launch, decode_plan
from tqchat.kv.kernels.encode import encode_inputs, encode_launch, plan_for
from tqchat.kv.kernels.in_place import InPlacePlan, Vectors
from tqchat.kv.scheme import FormatSpec, parse_scheme
from tqchat.kv.storage.token_store import Taken, TokenStore

HEADS = 2
METAL_BUFFERS = 31


def layer(scheme: str, dim: int, fine: int, raw: int, fitted: bool = True) -> list[Vectors]:
    """Fine tokens to be packed and raw ones that become fine, of keys and values, inside longer arrays."""
    mx.random.seed(9)
    vectors = []
    specs = parse_scheme(scheme)
    for role, spec in (("key", specs.key), ("value", specs.value)):
        x = mx.random.normal((1, HEADS, 90, dim)) * mx.exp(mx.random.normal((1, HEADS, 1, dim)))
        x = x.astype(mx.float16)
        packed = format_for(spec, role, x, fitted)
        fine_format = make_fine_format(packed)
        assert isinstance(fine_format, TurboFormat)
        stores = []
        for format_ in (packed, fine_format):
            store = TokenStore(64)
            store.append(format_.encode(x[:, :, :40]))
            stores.append(store)
        mx.eval([store.memory for store in stores], x)
        from_fine = Taken(stores[1].memory, stores[1].capacity, 3, fine)
        vectors.append(Vectors(from_fine, fine_format, packed, stores[0]))
        if raw:
            vectors.append(Vectors(Taken((x,), 90, 50, raw), None, fine_format, stores[1]))
    return vectors


def format_for(spec: FormatSpec, role, x: mx.array, fitted: bool) -> TurboFormat:
    format_ = make_format(spec, x.shape[3], role)
    assert isinstance(format_, TurboFormat)
    if not fitted:
        return format_
    energies = QueryStatistics(mx.exp(mx.random.normal((1, HEADS, 1, x.shape[3]))))
    fit = format_.fit(x, energies if role == "key" else NO_STATISTICS)
    if role == "value":
        return fit
    return replace(fit, balance=mx.exp(mx.random.normal((1, HEADS, 1, x.shape[3])) / 2).astype(mx.float16))


def by_kernels_of_their_own(emulator: Emulator, one: Vectors, tensor_cores: bool) -> list[mx.array]:
    """The codes that separate launches give for decoding, if need be, and for encoding."""
    block = tuple(mx.contiguous(array) for array in one.taken.view())
    if one.decoder is None:
        (x,) = block
    else:
        decoding = decode_plan(one.decoder, (), block, (), mx.float32)
        assert decoding is not None
        inputs = decode_inputs(decoding, one.decoder, (), block, ())
        (x,) = emulator.run(decoding.spec, inputs, decode_launch(decoding, block[0].shape[:3]))
    plan = plan_for(one.encoder, x.shape, x.dtype, tensor_cores)
    assert plan is not None
    return emulator.run(plan.spec, encode_inputs(plan, one.encoder, x), encode_launch(plan, x.shape))


@pytest.mark.skipif(CPLUSPLUS is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("scheme", "dim", "fine", "raw", "tensor_cores", "fitted"),
    [
        ("trellis3", 128, 9, 13, True, True),
        ("trellis3", 64, 16, 16, False, True),
        ("trellis4v2", 80, 13, 0, True, True),
        ("trellis2", 256, 8, 5, True, True),
        ("turbo3", 128, 7, 9, False, True),
        ("turbo2", 80, 5, 8, False, True),
        ("turbo3v2", 16, 5, 3, False, False),
    ],
)
def test_one_launch_has_the_bits_of_separate_ones(
    tmp_path_factory, monkeypatch, scheme, dim, fine, raw, tensor_cores, fitted
):
    monkeypatch.setattr("tqchat.kv.kernels.encode.MIN_GROUPS", 2)
    emulator = Emulator(shared_folder(tmp_path_factory))
    vectors = layer(scheme, dim, fine, raw, fitted)
    expected = [by_kernels_of_their_own(emulator, one, tensor_cores) for one in vectors]
    planned = in_place._plan(vectors, tensor_cores)
    assert planned is not None
    plan, fixed = planned
    assert [part.encode.tensor_cores for part in plan.parts if part.is_fine] == [tensor_cores] * 2
    before = [[mx.array(np.array(array)) for array in one.store.memory] for one in vectors]
    mx.eval(before)
    tokens, rooms, arrays = [], [], []
    for taken, _, _, store in vectors:
        tokens.append(taken.tokens)
        rooms += [taken.capacity | taken.start << 32, store.capacity | store.end << 32]
        arrays += [*taken.memory, *store.memory]
    sizes = in_place._sizes(0, in_place._strides(vectors, rooms))
    emulator.run(plan.spec, [mx.zeros(8), sizes, *arrays, *fixed], plan.launch(HEADS, tokens))
    for one, blocks, untouched in zip(vectors, expected, before, strict=True):
        first, end = one.store.end, one.store.end + one.taken.tokens
        for array, own, old in zip(one.store.memory, blocks, untouched, strict=True):
            parts = [old[:, :, :first], own, old[:, :, end:]]
            whole = mx.concatenate(parts, axis=2)
            assert mx.array_equal(array.view(mx.uint16), whole.view(mx.uint16))


@pytest.mark.parametrize("scheme", ["trellis4v2", "trellis3", "turbo4v2"])
@pytest.mark.parametrize("tensor_cores", [False, True])
def test_a_launch_has_no_more_arrays_than_metal_passes(monkeypatch, scheme, tensor_cores):
    monkeypatch.setattr("tqchat.kv.kernels.encode.MIN_GROUPS", 2)
    planned = in_place._plan(layer(scheme, 128, 16, 16), tensor_cores)
    assert planned is not None
    spec = planned[0].spec
    body = spec.source("metal").body
    described = sum(f"{name}_{kind}" in body for name in spec.inputs for kind in ("shape", "strides", "ndim"))
    if not tensor_cores:
        assert len(spec.inputs) + described + len(spec.outputs) <= METAL_BUFFERS
    (room,) = re.findall(r"room_of_parts\[(\d+)\];", body)
    assert 16 * int(room) <= (49_152 if tensor_cores else 32_768)


def test_layers_of_a_model_have_one_kernel():
    plans: set[InPlacePlan] = set()
    for _ in range(2):
        planned = in_place._plan(layer("trellis3", 64, 16, 16), False)
        assert planned is not None
        plans.add(planned[0])
    assert len(plans) == 1


def test_a_launch_serves_only_its_own_formats_and_heads():
    vectors = layer("turbo3", 32, 8, 8)
    formats = tuple((in_place._weakly(one.decoder), in_place._weakly(one.encoder)) for one in vectors)
    launch = in_place._Launch(HEADS, formats, mx.negative, ())
    assert launch.serves(vectors)
    *others, last = vectors
    assert not launch.serves([*others, last._replace(encoder=replace(last.encoder))])
    assert not launch.serves([others[0]._replace(decoder=None), *vectors[1:]])
    assert not launch._replace(heads=HEADS + 1).serves(vectors)
