"""The kernels' Metal text, run on the CPU over a shim, against the plain operations."""

from __future__ import annotations

import mlx.core as mx
import pytest

from tests.kv.kernels.emulator import CPLUSPLUS, Emulator
from tqchat.kv.attention import attention
from tqchat.kv.cache import SchemeCache
from tqchat.kv.fitting import NOTHING_SEEN, Seen
from tqchat.kv.formats import TurboFormat, make_format
from tqchat.kv.kernels.encode import encode_launch, encode_plan
from tqchat.kv.kernels.launch import Steps, plan_for
from tqchat.kv.scheme import FormatSpec, parse_scheme

pytestmark = pytest.mark.skipif(CPLUSPLUS is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    return Emulator(tmp_path_factory.mktemp("kernels"))


def filled(scheme, batch, heads, group, tokens, dims, dtype, rows):
    mx.random.seed(5)
    cache = SchemeCache(parse_scheme(scheme))
    keys, values = (
        (mx.random.normal((batch, heads, tokens, dim)) + mx.random.normal((batch, heads, 1, dim))).astype(
            dtype
        )
        for dim in dims
    )
    cache.update_and_fetch(keys, values)
    cache.observe(
        mx.random.normal((batch, heads * group, 8, dims[0])) * mx.random.uniform(0.2, 3, (dims[0],))
    )
    for count in (1, rows):
        cache.update_and_fetch(keys[:, :, :count], values[:, :, :count])
    return cache, mx.random.normal((batch, heads * group, rows, dims[0])).astype(dtype)


@pytest.mark.parametrize(
    ("scheme", "shape", "dims", "dtype", "rows", "tensor"),
    [
        ("turbo4", (1, 2, 3), (128, 128), mx.float16, 1, False),
        ("turbo3", (2, 1, 2), (64, 64), mx.bfloat16, 3, False),
        ("turbo8v2", (1, 1, 7), (128, 128), mx.float16, 1, False),
        ("turbo0v1", (1, 2, 1), (80, 80), mx.float16, 1, False),
        ("affine4", (1, 1, 4), (64, 64), mx.float16, 1, False),
        ("turbo3v4", (1, 1, 2), (192, 96), mx.float32, 1, False),
        ("turbo4", (1, 1, 12), (256, 256), mx.float16, 1, False),
        ("turbo4v3", (1, 2, 3), (128, 64), mx.float16, 2, True),
        ("turbo8v4", (1, 1, 8), (128, 128), mx.bfloat16, 1, True),
        ("turbo0v2", (2, 1, 4), (64, 256), mx.float16, 1, True),
    ],
)
def test_attention_in_the_kernels_is_that_of_plain_operations(
    emulator, scheme, shape, dims, dtype, rows, tensor
):
    batch, heads, group = shape
    cache, queries = filled(scheme, batch, heads, group, 190, dims, dtype, rows)
    sink = mx.random.normal((heads * group,)) if scheme == "turbo3" else None
    arguments = queries, cache.key_side, cache.value_side
    expected = attention(*arguments, 0.1, "causal", sink).astype(mx.float32)
    plan = plan_for(*arguments, sink is not None, tensor)
    assert plan is not None and plan.tensor == tensor
    steps = Steps(plan, *arguments, 0.1, sink)
    assert steps.ready(cache.key_side, cache.value_side)
    parts = emulator.run(plan.kernel, plan.attend_constants(), steps.attend(*arguments))
    (found,) = emulator.run("merge", plan.merge_constants(), steps.merge(parts))
    largest = mx.abs(expected).max().item()
    assert mx.abs(found.astype(mx.float32) - expected).max().item() <= 4e-3 * largest


def test_a_key_that_is_not_a_number_is_seen_in_the_kernels_too(emulator):
    cache, queries = filled("turbo4", 1, 1, 2, 190, (64, 64), mx.float16, 1)
    cache.key_side.packed.arrays[1][:, :, 7] = mx.nan
    arguments = queries, cache.key_side, cache.value_side
    plan = plan_for(*arguments, False)
    steps = Steps(plan, *arguments, 0.1, None)
    parts = emulator.run(plan.kernel, plan.attend_constants(), steps.attend(*arguments))
    (found,) = emulator.run("merge", plan.merge_constants(), steps.merge(parts))
    assert mx.isnan(found).all().item()


@pytest.mark.parametrize(
    ("role", "bits", "dim", "fitted"),
    [("key", 4, 128, True), ("key", 3, 64, True), ("key", 2, 80, False), ("value", 4, 256, True)],
)
def test_encoding_in_the_kernel_writes_what_plain_operations_write(emulator, role, bits, dim, fitted):
    mx.random.seed(9)
    x = (mx.random.normal((2, 2, 40, dim)) * mx.exp(mx.random.normal((1, 2, 1, dim)))).astype(mx.float16)
    form = make_format(FormatSpec("turbo", bits), dim, role)
    assert isinstance(form, TurboFormat)
    if fitted:
        seen = Seen(mx.exp(mx.random.normal((2, 2, 1, dim)))) if role == "key" else NOTHING_SEEN
        form = form.fit(x, seen)
    part = mx.contiguous(x[:, :, 5:21])
    words, gains = form.encode(part)
    plan = encode_plan(form, part)
    found = emulator.run("encode", plan.constants(), encode_launch(plan, form, part))
    # A tie may fall to the other side.
    assert (found[0] == words).mean().item() > 0.99
    assert mx.allclose(found[1].astype(mx.float32), gains.astype(mx.float32), rtol=2e-3).item()
