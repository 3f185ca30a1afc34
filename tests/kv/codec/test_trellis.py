"""Trellis codes: tables, paths, packing."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tqchat.kv.codec import trellis
from tqchat.kv.codec.formats import make_format
from tqchat.kv.codec.trellis import NEAR_FROM, DamagedTables, TrellisQuantiser, decoding_table, entries
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.codec.viterbi import MARGIN, STEPS, PathSearch
from tqchat.kv.scheme import FormatSpec
from tqchat.kv.storage.joint_encode import MAX_VECTORS

BITS = (2, 3, 4)


def normal(*shape: int, seed: int = 3) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def field(words: np.ndarray, bit: int, width: int) -> int:
    return int(words[bit // 32]) >> bit % 32 & (1 << width) - 1


def decoded(words: np.ndarray, bits: int, pairs: int) -> np.ndarray:
    """The values of one vector, read bit by bit as the module's docstring says."""
    table = np.array(entries(bits).astype(mx.float32))
    second = 32 * -(-pairs // 8)
    values = []
    for i in range(pairs):
        nibble, before = field(words, 4 * i, 4), field(words, 4 * ((i - 1) % pairs), 4)
        detail, signs = 0, [0, 0]
        if bits == 3:
            at = second + 32 * (i // 16) + i % 16
            signs = [field(words, at, 1), field(words, at + 16, 1)]
        elif bits == 4:
            at = second + 32 * (i // 8)
            detail = field(words, at + i % 8 // 2 * 8 + i % 2 * 2, 2)
            sign_at = at + i % 8 + (4 if i % 8 < 4 else 8)
            signs = [field(words, sign_at, 1), field(words, sign_at + 16, 1)]
        values += [table[detail, nibble, before, j] * (-1 if signs[j] else 1) for j in range(2)]
    return np.array(values, np.float32)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("head_dim", [64, 80, 33, 12, 2])
def test_lookup_reads_what_was_packed(bits: int, head_dim: int) -> None:
    quantiser = TrellisQuantiser(bits)
    words, values = quantiser.quantise(normal(2, 3, 5, head_dim))
    assert words.shape == (2, 3, 5, FormatSpec("trellis", bits).words_per_vector(head_dim))
    stored = quantiser.lookup(quantiser.prepare(words, head_dim), head_dim)
    assert mx.array_equal(quantiser.restore(stored, head_dim), values)
    # What pads an odd dimension or a group is not zero in the look-up, and must meet a zero.
    x = normal(2, 3, 1, head_dim)
    products = quantiser.arrange(x) @ stored.swapaxes(-1, -2)
    assert mx.allclose(products, x @ values.swapaxes(-1, -2), atol=1e-4)
    by_bit = decoded(np.array(words)[1, 2, 3], bits, -(-head_dim // 2))[:head_dim]
    assert np.array_equal(by_bit, np.array(values)[1, 2, 3])


@pytest.mark.parametrize(
    ("bits", "head_dim", "limit"),
    [(2, 64, 0.081), (2, 128, 0.080), (3, 64, 0.0223), (3, 128, 0.0221), (4, 64, 0.0056), (4, 128, 0.0056)],
)
def test_the_distortion_of_a_normal_is_a_third_below_the_scalar_one(
    bits: int, head_dim: int, limit: float
) -> None:
    x = normal(400, head_dim)
    error = (TrellisQuantiser(bits).quantise(x)[1] - x).square().mean().item()
    # Lloyd-Max: 0.1175, 0.0345, 0.0095.
    assert error < limit


def cheapest_by_trying_all(target: np.ndarray, table: np.ndarray, last: int) -> float:
    """Squared error of the best circular path of three pairs that ends in the nibble ``last``."""
    errors = np.square(table[None] - target[:, None, None, None]).sum(axis=-1).min(axis=1)
    one, two, three = errors  # [nibbles, preceding nibbles]
    total = one[:, last, None] + two.T + three[last]  # [first nibble, second nibble]
    return float(total.min())


@pytest.mark.parametrize("outlier", [None, 3.0, -5.0, 40.0, 1e6])
@pytest.mark.parametrize("bits", [2, 3])
def test_no_path_with_the_same_ends_is_better(bits: int, outlier: float | None) -> None:
    """Up to the rounding of errors; what lies far outside the table is searched at its edge."""
    x = np.array(normal(40, 6))
    if outlier is not None:
        x[:, 1] = outlier
    table = np.array(entries(bits).astype(mx.float32))
    limit = MARGIN * np.abs(table).max()
    target = np.clip(np.abs(x) if bits > 2 else x, -limit, limit).reshape(40, 3, 2)
    words, values = (np.array(part) for part in TrellisQuantiser(bits).quantise(mx.array(x)))
    found = np.square((np.abs(values) if bits > 2 else values).reshape(40, 3, 2) - target).sum(axis=(1, 2))
    for one, row, error in zip(target, words, found, strict=True):
        least = cheapest_by_trying_all(one, table, field(row, 8, 4))
        assert least - 1e-4 < error < least + 0.02


@pytest.mark.parametrize("bits", BITS)
def test_vectors_are_encoded_alike_alone_and_together(bits: int) -> None:
    quantiser, x = TrellisQuantiser(bits), normal(300, 64)
    together, _ = quantiser.quantise(x)
    alone, _ = quantiser.quantise(x[260:270])
    assert mx.array_equal(together[260:270], alone)


@pytest.mark.parametrize("tokens", [16, 64, NEAR_FROM - 1, NEAR_FROM, 480])
def test_what_layers_pack_together_is_encoded_as_alone(tokens: int) -> None:
    """Drafts may change with which other layers a layer packs."""
    quantiser = TrellisQuantiser(4)
    x = normal(MAX_VECTORS // (3 * tokens), 3, tokens, 64)
    together, _ = quantiser.quantise(x)
    assert mx.array_equal(together[1:2], quantiser.quantise(x[1:2])[0])


def test_many_vectors_are_encoded_alike_in_any_company() -> None:
    """Blocks of vectors and threads differ then."""
    quantiser, x = TrellisQuantiser(4), normal(5000, 20)
    together, _ = quantiser.quantise(x)
    for start, count in ((0, NEAR_FROM), (1700, 2300)):
        alone, _ = quantiser.quantise(x[start : start + count])
        assert mx.array_equal(together[start : start + count], alone)


@pytest.mark.parametrize("scale", [1.0, 4.0, 1e6], ids=["normal", "outliers", "nothing but outliers"])
@pytest.mark.parametrize("head_dim", [128, 64, 33, 6, 2])
def test_trying_near_branches_only_finds_paths_as_good(head_dim: int, scale: float) -> None:
    quantiser, x = TrellisQuantiser(4), normal(4098, head_dim)
    x[:, ::16] *= scale
    x *= head_dim**0.5 / mx.linalg.norm(x, axis=-1, keepdims=True)
    words, near = quantiser.quantise(x)
    stored = quantiser.lookup(quantiser.prepare(words, head_dim), head_dim)
    assert mx.array_equal(quantiser.restore(stored, head_dim), near)
    # Of fewer tokens all branches are tried.
    parts = [x[start : start + NEAR_FROM - 1] for start in range(0, len(x), NEAR_FROM - 1)]
    every = mx.concatenate([quantiser.quantise(part)[1] for part in parts])
    limit = MARGIN * mx.abs(entries(4)).max().astype(mx.float32)
    inside = np.array(mx.clip(x, -limit, limit))
    errors = [np.square(np.array(values) - inside).mean() for values in (near, every)]
    assert errors[0] < 1.001 * errors[1]


@pytest.mark.parametrize("value", [0.0, 0.5, -1.0])
def test_vectors_that_are_all_the_same_are_encoded_like_one(value: float) -> None:
    """Their pairs lie in one cell: all other cells have no block."""
    x = mx.full((NEAR_FROM, 16), value)
    quantiser = TrellisQuantiser(4)
    assert mx.array_equal(
        quantiser.quantise(x)[1], mx.repeat(quantiser.quantise(x[:1])[1], NEAR_FROM, axis=0)
    )


def test_a_vector_that_is_not_finite_spoils_none_of_many() -> None:
    quantiser, x = TrellisQuantiser(4), normal(NEAR_FROM + 2, 64)
    alone = quantiser.quantise(x[2:])[0]
    x[0, 5], x[1] = mx.nan, mx.inf
    assert mx.array_equal(quantiser.quantise(x)[0][2:], alone)


@pytest.mark.parametrize("bits", BITS)
def test_a_gpu_without_kernels_finds_the_paths_of_a_cpu(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = mx.abs(normal(50, 20, 2))
    table = entries(bits).astype(mx.float32)
    on_cpu = PathSearch(table).best_path(pairs)
    # Any device but the CPU has MLX operations, which run here too.
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    on_gpu = PathSearch(table).best_path(pairs)
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert one.dtype == other.dtype == mx.uint32
        assert (one == other).mean().item() > 0.99


@pytest.mark.parametrize("bits", BITS)
def test_tables_are_what_a_trained_codebook_is(bits: int) -> None:
    """Every entry is the mean of the pairs coded by it, so that further training changes nothing much."""
    x = normal(600, 64, seed=8)
    values = TrellisQuantiser(bits).quantise(x)[1]
    # Centroids: the error is orthogonal to the value.
    assert abs(((x - values) * values).mean().item()) < 0.004
    assert decoding_table(bits).size == 256 << 2 * (bits - 2)


@pytest.mark.parametrize("bits", BITS)
def test_a_vector_that_is_not_finite_decodes_to_nan_and_spoils_no_other(bits: int) -> None:
    x = normal(1, 1, 6, 64)
    format_ = make_format(FormatSpec("trellis", bits), 64, "value")
    alone = format_.decode(format_.encode(x))
    x[0, 0, 2, 5] = mx.inf
    spoiled = format_.decode(format_.encode(x))
    kept = mx.array([0, 1, 3, 4, 5])
    assert mx.isnan(spoiled[0, 0, 2]).all() and mx.array_equal(spoiled[0, 0, kept], alone[0, 0, kept])


def test_scalar_and_trellis_formats_differ_only_in_the_quantiser() -> None:
    turbo, coded = (make_format(FormatSpec(kind, 3), 128, "key") for kind in ("turbo", "trellis"))
    assert isinstance(turbo, TurboFormat) and isinstance(coded, TurboFormat)
    assert turbo.rotation is coded.rotation
    x = normal(1, 1, 50, 128)
    errors = [(one.decode(one.encode(x)) - x).square().mean().item() for one in (turbo, coded)]
    assert errors[1] < 0.7 * errors[0]


def test_a_damaged_table_file_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(trellis._TABLES.read_bytes())
    data[-1] ^= 1
    damaged = tmp_path / "trellis_tables.safetensors"
    damaged.write_bytes(data)
    monkeypatch.setattr(trellis, "_TABLES", damaged)
    trellis._tables.cache_clear()
    with pytest.raises(DamagedTables, match="reinstall"):
        entries(2)
    trellis._tables.cache_clear()


@pytest.mark.parametrize("bits", BITS)
def test_costs_of_the_search_are_exact_wherever_a_pair_lies(bits: int) -> None:
    """Sixteen times the error of the best branch of any state is a whole number that float32 can hold."""
    table = np.array(entries(bits).astype(mx.float32))
    limit = MARGIN * np.abs(table).max()
    axis = np.linspace(-limit if bits == 2 else 0, limit, 41)
    targets = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    errors = np.square(table[None] - targets[:, None, None, None]).sum(axis=-1).min(axis=1)
    assert 16 * STEPS**2 * errors.min(axis=1).max() < 1 << 24
