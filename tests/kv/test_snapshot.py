from __future__ import annotations

import json
import os
import resource
import signal
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.kv import tiny
from tests.kv.test_cache import logits
from tqchat.kv import CacheFileError, load, make_prompt_cache, save


def saved(tmp_path: Path, scheme: str = "turbo0v4", **config: Any) -> tuple[Any, list[Any], Path]:
    model = tiny.llama(**config)
    cache = make_prompt_cache(model, scheme, dtype=mx.float16)
    logits(model, cache, tiny.tokens(320), 315)
    path = tmp_path / "cache.safetensors"
    save(path, cache, {"model": "tiny"})
    return model, cache, path


@pytest.mark.parametrize("scheme", tiny.REPRESENTATIVE)
def test_a_restored_cache_continues_bit_for_bit(tmp_path: Path, scheme: str) -> None:
    model, cache, path = saved(tmp_path, scheme)
    restored, metadata = load(path)
    assert metadata == {"model": "tiny"}
    assert tiny.report_at_rest(restored) == tiny.report_at_rest(cache)
    more = tiny.tokens(60, seed=4)
    assert mx.array_equal(logits(model, restored, more, 20), logits(model, cache, more, 20))


@pytest.mark.parametrize("head_dim", [40, 100])
@pytest.mark.parametrize("scheme", ["turbo3", "trellis4", "affine4"])
def test_head_dimensions_that_fill_no_whole_words_are_restored(
    tmp_path: Path, scheme: str, head_dim: int
) -> None:
    model, cache, path = saved(tmp_path, scheme, head_dim=head_dim)
    restored, _ = load(path)
    assert restored[0].packed_tokens
    more = tiny.tokens(8, seed=4)
    assert mx.array_equal(logits(model, restored, more), logits(model, cache, more))


@pytest.mark.parametrize("scheme", ["fp16", "turbo0v4"])
def test_sliding_window_layers_are_restored(tmp_path: Path, scheme: str) -> None:
    config = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
    model, cache, path = saved(tmp_path, scheme, **config)
    restored, _ = load(path)
    more = tiny.tokens(60, seed=4)
    assert mx.array_equal(logits(model, restored, more), logits(model, cache, more))


def test_empty_caches_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    save(path, make_prompt_cache(tiny.llama(), "turbo0v4"))
    restored, _ = load(path)
    assert len(restored) == 2 and all(layer.empty() for layer in restored)


def test_packed_tokens_stay_packed_on_disk(tmp_path: Path) -> None:
    _, cache, path = saved(tmp_path, "turbo0v2")
    report = tiny.report_at_rest(cache)
    assert report.bytes < path.stat().st_size < report.bytes * 1.01 + 8192


def test_a_loaded_cache_does_not_depend_on_the_file(tmp_path: Path) -> None:
    model, cache, path = saved(tmp_path)
    restored, _ = load(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    more = tiny.tokens(5, seed=4)
    assert mx.array_equal(logits(model, restored, more), logits(model, cache, more))


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(path: Path, header: dict[str, Any], body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def damaged_files(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    return {
        "empty": b"",
        "short": data[:5],
        "cut off": data[: len(data) // 2],
        "header cut off": data[:100],
        "no safetensors": b"hello there, this is no cache" * 50,
        "zeros": b"\0" * len(data),
        "huge header": struct.pack("<Q", 1 << 60) + data[8:],
        "nested header": struct.pack("<Q", 100_000) + b"[" * 100_000,
    }


@pytest.mark.parametrize("kind", list(damaged_files(Path(__file__))))
def test_a_damaged_file_raises_cache_file_error(tmp_path: Path, kind: str) -> None:
    _, _, path = saved(tmp_path)
    path.write_bytes(damaged_files(path)[kind])
    with pytest.raises(CacheFileError, match=r"cache\.safetensors"):
        load(path)


def test_a_missing_file_and_a_pipe_raise_cache_file_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("none", "pipe"):
        with pytest.raises(CacheFileError, match="cannot be read"):
            load(tmp_path / f"{name}.safetensors")


def test_a_file_cannot_name_an_unknown_class(tmp_path: Path) -> None:
    _, _, path = saved(tmp_path)
    header, body = header_of(path)
    description = json.loads(header["__metadata__"]["tqchat"])
    description["layers"][0]["class"] = "os.system"
    header["__metadata__"]["tqchat"] = json.dumps(description)
    write(path, header, body)
    with pytest.raises(CacheFileError, match="not allowed"):
        load(path)


def test_another_codec_version_is_refused(tmp_path: Path) -> None:
    _, _, path = saved(tmp_path)
    header, body = header_of(path)
    description = json.loads(header["__metadata__"]["tqchat"])
    description["codec"] += 1
    header["__metadata__"]["tqchat"] = json.dumps(description)
    write(path, header, body)
    with pytest.raises(CacheFileError, match="codec version"):
        load(path)


def test_shapes_larger_than_the_file_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    _, _, path = saved(tmp_path)
    header, body = header_of(path)
    name = next(key for key in header if key != "__metadata__")
    header[name]["shape"] = [1 << 40, 1 << 20]
    write(path, header, body)
    with pytest.raises(CacheFileError, match="does not lie inside"):
        load(path)


def test_a_file_without_description_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    mx.save_safetensors(str(path), {"a": mx.ones(3)})
    with pytest.raises(CacheFileError, match="not a cache file"):
        load(path)


def test_a_layer_of_unknown_class_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CacheFileError, match="cannot be saved"):
        save(tmp_path / "x.safetensors", [object()])


def test_a_cache_file_must_end_in_safetensors(tmp_path: Path) -> None:
    with pytest.raises(CacheFileError, match=r"\.safetensors"):
        save(tmp_path / "x.kv", [])


def test_a_refusal_quotes_little_of_the_file(tmp_path: Path) -> None:
    """Names, classes and values of a file may be as long as the file."""
    _, _, path = saved(tmp_path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    for old, new in ((b"SchemeCache", b"S" * 20_000), (b"layer.0.1.", b"layer." + b"9" * 20_000 + b".1.")):
        header = content[8 : 8 + length].replace(old, new)
        damaged = tmp_path / "damaged.safetensors"
        damaged.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
        with pytest.raises(CacheFileError) as refused:
            load(damaged)
        assert len(str(refused.value)) < 400


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    _, cache, path = saved(tmp_path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        with pytest.raises(CacheFileError, match="cannot be written"):
            save(path, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_is_a_cache_file_error(tmp_path: Path) -> None:
    with pytest.raises(CacheFileError, match="cannot be written"):
        save(tmp_path / "missing" / "cache.safetensors", make_prompt_cache(tiny.llama(), "turbo4"))


def test_what_is_saved_again_keeps_its_link_and_mode_and_may_have_a_long_name(tmp_path: Path) -> None:
    path, link = tmp_path / f"{'x' * 240}.safetensors", tmp_path / "link.safetensors"
    save(path, make_prompt_cache(tiny.llama(), "turbo4"))
    path.chmod(0o600)
    link.symlink_to(path)
    before = path.stat().st_ino
    save(link, make_prompt_cache(tiny.llama(), "affine8"))
    assert link.is_symlink() and path.stat().st_ino != before and path.stat().st_mode & 0o777 == 0o600
