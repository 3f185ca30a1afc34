"""Cache files whose numbers and names are made up."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import cache as mlx_cache

from tests.kv import families, tiny
from tests.kv.test_cache import logits
from tests.kv.test_families import short
from tests.kv.test_snapshot import header_of, write
from tqchat.kv import CacheFileError, load, make_prompt_cache, ranges, save
from tqchat.kv.snapshot import rebuild_layer

HOSTILE: list[Any] = [-1, 2**31, 10**30, 1.5, float("inf"), float("nan"), True, "9", None, [1], {}]
NAMES = ["9" * 4, "9" * 9, "9" * 300, "0.9999999", "0." * 5000, "-1", "x", "", "٣"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of models with full attention, windows and recurrent states, as files."""
    path = tmp_path_factory.mktemp("caches")
    for name in ("llama with windows", "qwen3_next", "deepseek_v3"):
        for scheme in ("turbo4", "turbo3", "affine8", "fp16"):
            model = families.model(name)
            cache = make_prompt_cache(model, short(scheme))
            logits(model, cache, tiny.tokens(60), 58)
            save(path / f"{name}-{scheme}.safetensors", cache)
    return path


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all numbers in parsed JSON."""
    if isinstance(value, dict):
        return [place for key, part in value.items() for place in places(part, (*path, key))]
    if isinstance(value, list):
        return [place for at, part in enumerate(value) for place in places(part, (*path, at))]
    return [path] if isinstance(value, int) else []


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    value = copy.deepcopy(value)
    target = value
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = new
    return value


def refused_cheaply(path: Path, header: Any, body: bytes) -> None:
    """The file either loads and works, or is refused by a sentence; memory stays small."""
    write(path, header, body)
    tracemalloc.start()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    try:
        cache, _ = load(path)
        for layer in cache:
            if hasattr(layer, "make_mask") and not isinstance(layer, mlx_cache.ArraysCache):
                layer.make_mask(1, window_size=families.WINDOW)
        mx.eval([layer.state for layer in cache if not layer.empty()])
    except CacheFileError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 20 << 20 and mx.get_peak_memory() - before < 20 << 20


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_any_number_of_a_file_is_checked_before_memory_is_taken(
    value: Any, folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        header, body = header_of(file)
        description = json.loads(header["__metadata__"]["tqchat"])
        for place in places(header)[::9]:
            refused_cheaply(tmp_path / file.name, replaced(header, place, value), body)
        layer = description["layers"][-1]
        for number, (key, leaf) in enumerate(layer.get("scalars", [])):
            changed = [value]
            if isinstance(leaf, str):
                text = json.loads(leaf)
                changed = [json.dumps(replaced(text, place, value)) for place in places(text)]
            for new in changed:
                mutated = replaced(description, ("layers", -1, "scalars", number), [key, new])
                mutated_header = replaced(header, ("__metadata__", "tqchat"), json.dumps(mutated))
                refused_cheaply(tmp_path / file.name, mutated_header, body)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:12])
def test_a_made_up_name_takes_no_memory(name: str, folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        header, body = header_of(file)
        old = next(key for key in header if key != "__metadata__")
        renamed = {(f"layer.0.{name}" if key == old else key): entry for key, entry in header.items()}
        refused_cheaply(tmp_path / file.name, renamed, body)
        description = json.loads(header["__metadata__"]["tqchat"])
        description["layers"][-1].setdefault("scalars", []).append([name, 1])
        header["__metadata__"]["tqchat"] = json.dumps(description)
        refused_cheaply(tmp_path / file.name, header, body)


@pytest.mark.parametrize("text", ["Infinity", "-Infinity", "NaN", "1e999", "9" * 5000])
def test_a_header_with_an_impossible_number_is_damaged(text: str, folder: Path, tmp_path: Path) -> None:
    header, body = header_of(next(folder.iterdir()))
    name = next(key for key in header if key != "__metadata__")
    header[name]["data_offsets"][1] = "HERE"
    written = json.dumps(header).replace('"HERE"', text).encode()
    path = tmp_path / "c.safetensors"
    path.write_bytes(len(written).to_bytes(8, "little") + written + body)
    with pytest.raises(CacheFileError, match=r"c\.safetensors is damaged"):
        load(path)


def test_a_shape_of_a_million_numbers_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    header, body = header_of(next(folder.iterdir()))
    name = next(key for key in header if key != "__metadata__")
    header[name]["shape"] = [2**31 - 1] * 1_000_000
    write(tmp_path / "c.safetensors", header, body)
    with pytest.raises(CacheFileError, match="does not lie inside"):
        load(tmp_path / "c.safetensors")


def test_too_many_layers_are_refused(folder: Path, tmp_path: Path) -> None:
    header, body = header_of(next(folder.iterdir()))
    description = json.loads(header["__metadata__"]["tqchat"])
    description["layers"] = description["layers"][:1] * 5000
    header["__metadata__"]["tqchat"] = json.dumps(description)
    write(tmp_path / "c.safetensors", header, body)
    with pytest.raises(CacheFileError, match="layers"):
        load(tmp_path / "c.safetensors")


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_any_number_of_ranges_is_checked(value: Any) -> None:
    model = tiny.llama()
    cache = make_prompt_cache(model, short("turbo4"))
    logits(model, cache, tiny.tokens(60), 58)
    structure, arrays = ranges.rest(cache, 0)
    mx.eval(arrays)
    text = json.loads(structure[0]["text"])
    for place in places(text):
        mutated = replaced(structure, (0, "text"), json.dumps(replaced(text, place, value)))
        attempt(lambda mutated=mutated: ranges.rebuild(mutated, [dict(arrays)], 60))
    attempt(lambda: ranges.rebuild(structure, [dict(arrays)], value))
    with pytest.raises(CacheFileError):
        ranges.rebuild(structure * 5000, [dict(arrays)], 60)
    assert ranges.rebuild(structure, [dict(arrays)], 60)[0].offset == 60


def attempt(build: Callable[[], Any]) -> None:
    try:
        build()
    except CacheFileError:
        pass


@pytest.mark.parametrize("head_dim", [2, 63, 1 << 20])
def test_a_head_dimension_that_the_arrays_do_not_have_draws_no_rotation(head_dim: int) -> None:
    model = tiny.llama()
    cache = make_prompt_cache(model, short("turbo4"))
    logits(model, cache, tiny.tokens(60), 58)
    text, arrays = cache[0].state
    description = json.loads(text)
    description["sides"][0][0] = head_dim
    leaves = {f"layer.1.{name}": array for name, array in arrays.items()}
    with pytest.raises(ValueError, match=r"head dimension|integer"):
        rebuild_layer({"class": "SchemeCache", "scalars": [["0", json.dumps(description)]]}, "layer", leaves)
