"""The tensor-core search of trellis codes, run on the CPU, and which vectors are encoded with it."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from tests.kv.kernels.emulator import CPLUSPLUS, Emulator, assert_same_in_place, shared_folder
from tqchat.kv.codec.fitting import NO_STATISTICS, QueryStatistics
from tqchat.kv.codec.formats import make_format
from tqchat.kv.codec.trellis import entries
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.kernels import encode
from tqchat.kv.kernels.device import Kernels
from tqchat.kv.kernels.encode import encode_inputs, encode_launch, encode_plan
from tqchat.kv.kernels.trellis_search import STEPS, branch_fragments
from tqchat.kv.scheme import FormatSpec

pytestmark = pytest.mark.skipif(CPLUSPLUS is None, reason="no C++ compiler")

SEARCH_RATIO = 1.005
"""Squared errors relative to those of the plain operations' search, which rounds to finer steps."""

SAMPLE_RATIO = 1.02
"""The same for a hundred vectors, some of which start their path in another state."""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    return Emulator(shared_folder(tmp_path_factory))


def vectors(tokens, dim, heads=2, batch=2):
    mx.random.seed(9)
    scales = mx.exp(mx.random.normal((1, heads, 1, dim)))
    return (mx.random.normal((batch, heads, tokens, dim)) * scales).astype(mx.float16)


def format_for(bits, role, x, fitted=True):
    dim = x.shape[3]
    format_ = make_format(FormatSpec("trellis", bits), dim, role)
    assert isinstance(format_, TurboFormat)
    if not fitted:
        return format_
    energies = QueryStatistics(mx.exp(mx.random.normal((*x.shape[:2], 1, dim))))
    return format_.fit(x, energies if role == "key" else NO_STATISTICS)


def tensor_plan(format_, x):
    return replace(encode_plan(format_, x), tensor_cores=True)


def run(emulator, format_, x):
    plan = tensor_plan(format_, x)
    return tuple(emulator.run(plan.spec, encode_inputs(plan, format_, x), encode_launch(plan, x.shape)))


def squared_errors(format_, blocks, x):
    return [(format_.decode(block) - x).square().sum(axis=-1) for block in blocks]


@pytest.mark.parametrize(
    ("bits", "role", "dim", "fitted"),
    [
        (2, "key", 64, True),
        (2, "value", 256, True),
        (3, "key", 128, True),
        (3, "value", 80, True),
        (3, "key", 160, False),
        (3, "value", 16, True),
        (4, "key", 80, True),
        (4, "value", 128, True),
        (4, "key", 33, True),
        (4, "key", 256, True),
    ],
)
def test_paths_cost_no_more_than_those_of_plain_operations(emulator, bits, role, dim, fitted):
    x = vectors(40, dim)
    format_ = format_for(bits, role, x, fitted)
    part = mx.contiguous(x[:, :, 5:34])  # 29 tokens: the last group is not full
    expected = format_.encode(part)
    found = run(emulator, format_, part)
    assert_same_in_place(emulator, tensor_plan(format_, part), format_, part, found)
    errors = squared_errors(format_, (expected, found), part)
    assert errors[1].sum().item() < SAMPLE_RATIO * errors[0].sum().item()
    assert mx.median(mx.abs(errors[1] / errors[0] - 1)).item() < 0.02
    # Gains are rounded to 16 bits, of which some name the centre.
    gains = [abs(block[1].astype(mx.float32)) for block in (expected, found)]
    assert mx.median(mx.abs(gains[1] / gains[0] - 1)).item() < 0.005


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_normal_vectors_have_the_errors_of_plain_operations(emulator, bits):
    mx.random.seed(4)
    x = mx.random.normal((1, 1, 400, 64))
    format_ = format_for(bits, "value", x, fitted=False)
    errors = squared_errors(format_, (format_.encode(x), run(emulator, format_, x)), x)
    assert errors[1].sum().item() < SEARCH_RATIO * errors[0].sum().item()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_paths_of_one_vector_do_not_depend_on_others(emulator, bits):
    x = vectors(24, 64)
    format_ = format_for(bits, "value", x)
    whole = run(emulator, format_, x)
    part = mx.contiguous(x[:, :, 3:14])
    for all_tokens, own in zip(whole, run(emulator, format_, part), strict=True):
        assert mx.array_equal(all_tokens[:, :, 3:14], own)


@pytest.mark.parametrize("bits", [2, 4])
def test_vectors_without_a_code_leave_others_as_they_are(emulator, bits):
    x = vectors(16, 64)
    format_ = format_for(bits, "key", x)
    spoiled = np.array(x)
    spoiled[0, 0, 3, 7] = np.nan
    spoiled[0, 1, 4, 0] = np.inf
    spoiled[1, 0, 5] = 0
    found, before = run(emulator, format_, mx.array(spoiled)), run(emulator, format_, x)
    touched = np.zeros(x.shape[:3], bool)
    touched[0, 0, 3] = touched[0, 1, 4] = touched[1, 0, 5] = True
    for now, then in zip(found, before, strict=True):
        assert np.array_equal(np.array(now)[~touched], np.array(then)[~touched])
    gains = np.array(found[1])
    assert np.isnan(gains[0, 0, 3]) and np.isnan(gains[0, 1, 4]) and np.isfinite(gains[1, 0, 5])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outliers_cost_no_more_than_with_plain_operations(emulator, bits):
    # Without a rotation that spreads them: coordinates of up to 11 times the root mean square.
    x = vectors(16, 128)
    format_ = format_for(bits, "value", x, fitted=False)
    rotated = np.array(mx.random.normal(x.shape))
    rotated[..., 5] *= 60
    rotated[0, ..., 6] *= 20
    x = format_.rotation.unrotate(mx.array(rotated)).astype(mx.float16)
    errors = squared_errors(format_, (format_.encode(x), run(emulator, format_, x)), x)
    assert errors[1].sum().item() < SAMPLE_RATIO * errors[0].sum().item()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_fragments_hold_the_squared_errors_of_branches(bits):
    fragments = np.array(branch_fragments(bits)).view(np.float16).reshape(-1, 2, 8, 4, 2)
    steps = np.rint(STEPS[bits] * np.array(entries(bits).astype(mx.float32)))
    x, y = 37, -112
    for branch in range(2 * len(fragments)):
        preceding, detail = divmod(branch, len(steps))
        for state in range(16):
            slots = fragments[branch // 2, state // 8, state % 8].astype(np.float64)
            slots = slots[branch % 2 * 2 : branch % 2 * 2 + 2].reshape(-1)
            error = np.square(steps[detail, state, preceding] - (x, y)).sum() - x * x - y * y
            assert slots @ (x, y, 1, 4096) == 16 * error + preceding


def test_tensor_cores_are_for_many_vectors_of_trellis_codes():
    many, few = vectors(64, 16), vectors(16, 16)
    trellis, scalar = format_for(3, "value", few), make_format(FormatSpec("turbo", 3), 16, "value")
    assert isinstance(scalar, TurboFormat)
    assert encode_plan(trellis, many, tensor_cores=True).tensor_cores
    assert not encode_plan(trellis, few, tensor_cores=True).tensor_cores
    assert not encode_plan(trellis, many).tensor_cores
    assert not encode_plan(scalar, many, tensor_cores=True).tensor_cores


@pytest.mark.parametrize("fails", [False, True])
def test_a_kernel_that_does_not_run_leaves_the_one_without_tensor_cores(monkeypatch, emulator, fails):
    device_kernels = Kernels("cuda", tensor_cores=True)
    launched = []

    def compiled(_, plan, shape):
        def launch(*inputs):
            launched.append(plan.tensor_cores)
            if fails and plan.tensor_cores:
                raise RuntimeError("too many registers")
            return emulator.run(plan.spec, inputs, encode_launch(plan, shape))

        return launch

    monkeypatch.setattr(encode, "kernels", lambda: device_kernels)
    monkeypatch.setattr(encode, "_compiled", compiled)
    monkeypatch.setattr(encode, "MIN_GROUPS", 4)
    x = vectors(16, 32)
    format_ = format_for(2, "value", x)
    expected = format_.encode(x)
    for _ in range(2):
        errors = squared_errors(format_, (expected, encode.encode(format_, x)), x)
        assert errors[1].sum().item() < encode.MAX_ERROR_RATIO * errors[0].sum().item()
    assert len(device_kernels.refused) == fails
    # The first use is a comparison with plain operations.
    assert launched == ([True, False, False, False] if fails else [True, True, True])
