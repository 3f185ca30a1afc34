"""Mirrors that are broken or hostile: nothing is written outside the cache, nothing endless is read."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.hub.stand_in_hub import COMMIT, REPO, Hub, serving
from tqchat.engine.hub.remote import download, transport
from tqchat.engine.hub.resolve import resolve
from tqchat.errors import TqchatError


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "place" / "hub-cache"


@pytest.fixture
def hub(llama_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(transport, "back_off", lambda *_: None)
    with serving(llama_folder, cache, monkeypatch) as hub:
        yield hub


def sentence() -> str:
    with pytest.raises(TqchatError) as caught:
        resolve(REPO)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(table: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in table["siblings"] if row["rfilename"] == name)


def test_an_etag_with_a_path_is_not_used(hub: Hub, cache: Path) -> None:
    hub.file_headers = {"ETag": '"../../../../escape"', "X-Linked-Etag": '"../../escape"'}
    folder = resolve(REPO)
    assert (folder / "config.json").read_bytes() == hub.files["config.json"]
    assert not list(cache.parent.parent.rglob("*escape*"))
    assert [path.name for path in cache.parent.iterdir()] == ["hub-cache"]


@pytest.mark.parametrize("field", ["blobId", "sha256"])
def test_a_hash_with_a_path_in_the_listing_is_refused(hub: Hub, cache: Path, field: str) -> None:
    def change(table: dict[str, Any]) -> None:
        if field == "blobId":
            rows(table, "config.json")["blobId"] = "../../../escape"
        else:
            rows(table, "model.safetensors")["lfs"]["sha256"] = "../../../escape"

    hub.change_listing = change
    assert "which version" in sentence()
    assert not cache.exists()


@pytest.mark.parametrize(
    "name", ["../evil.json", "a/b.json", "/etc/evil.json", ".hidden.json", "a\x1b.json", ""]
)
def test_files_with_paths_in_their_names_are_left_out(hub: Hub, cache: Path, name: str) -> None:
    def change(table: dict[str, Any]) -> None:
        table["siblings"].append({"rfilename": name, "size": 2, "blobId": "a" * 40})

    hub.change_listing = change
    folder = resolve(REPO)
    assert {path.name for path in folder.iterdir()} == set(hub.files)


@pytest.mark.parametrize("size", [-1, "12", 1.5, True, 1 << 60, []])
def test_a_size_that_is_none_is_refused(hub: Hub, size: object) -> None:
    hub.change_listing = lambda table: rows(table, "config.json").update(size=size)
    assert "which version" in sentence()


def test_a_listing_with_other_types_is_no_crash(hub: Hub) -> None:
    hub.change_listing = lambda table: table["siblings"].extend([None, 3, {"rfilename": 5}, {"x": 1}])
    assert resolve(REPO).is_dir()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_longer_than_listed_is_refused_and_not_kept(hub: Hub, cache: Path, name: str) -> None:
    hub.padding[name] = b"x" * 10
    assert f"sends more of {name} than it says" in sentence()
    assert not list(cache.rglob("*.incomplete"))
    hub.padding = {}
    assert resolve(REPO).is_dir()


def test_an_endless_configuration_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqchat.engine.hub.remote.listing.MAX_CONFIG_BYTES", 1 << 20)
    hub.padding["config.json"] = b" " * (2 << 20)
    assert "sends more than 1.05 MB for config.json" in sentence()


def test_an_endless_listing_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_LISTING_BYTES", 1 << 20)
    hub.answer = lambda path, _: (200, {}, b" " * (2 << 20)) if "/api/" in path else None
    assert "sends more than 1.05 MB for the list of its files" in sentence()


def test_a_compressed_body_counts_as_what_it_expands_to(hub: Hub, cache: Path) -> None:
    bomb = gzip.compress(bytes(200 << 20))
    hub.answer = lambda path, _: (
        (200, {"Content-Encoding": "gzip"}, bomb) if path.endswith("tokenizer.json") else None
    )
    assert "sends more of tokenizer.json" in sentence()
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < 10 << 20


def test_a_compressed_body_of_the_listed_size_is_accepted(hub: Hub) -> None:
    packed = gzip.compress(hub.files["tokenizer.json"])
    hub.answer = lambda path, _: (
        (200, {"Content-Encoding": "gzip"}, packed) if path.endswith("tokenizer.json") else None
    )
    assert (resolve(REPO) / "tokenizer.json").read_bytes() == hub.files["tokenizer.json"]


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_other_compressions_are_refused(hub: Hub, encoding: str) -> None:
    hub.answer = lambda *_: (200, {"Content-Encoding": encoding}, b"xx")
    assert "which was not asked for" in sentence()


def test_a_mirror_that_lists_no_sizes_and_hashes_is_used(hub: Hub) -> None:
    def change(table: dict[str, Any]) -> None:
        table["siblings"] = [{"rfilename": name} for name in hub.files]

    hub.change_listing = change
    folder = resolve(REPO)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == hub.files


def test_unlisted_sizes_are_checked_against_the_free_space(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(table: dict[str, Any]) -> None:
        table["siblings"] = [{"rfilename": name} for name in hub.files]

    hub.change_listing = change
    usage = shutil._ntuple_diskusage(10, 10, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "free some" in sentence()


def test_the_free_space_is_looked_at_while_reading(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_SPACE_CHECK_BYTES", 1)
    total = sum(map(len, hub.files.values()))
    sizes = [total + 10, *[0] * 1000]
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda _: shutil._ntuple_diskusage(10, 10, sizes.pop(0)),  # type: ignore[attr-defined]
    )
    assert "free some" in sentence()


def test_a_partial_file_is_not_written_through_a_link(hub: Hub, cache: Path, tmp_path: Path) -> None:
    blobs = cache / f"models--{REPO.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (tmp_path / "precious").write_bytes(b"kept")
    name = f"{hub.etag('model.safetensors')}.tqchat.incomplete"
    (blobs / name).symlink_to(tmp_path / "precious")
    assert "cannot be stored" in sentence()
    assert (tmp_path / "precious").read_bytes() == b"kept"


def test_a_range_that_begins_elsewhere_is_not_appended(hub: Hub, cache: Path) -> None:
    content = hub.files["model.safetensors"]
    hub.cut_after = [len(content) // 2]

    def answer(path: str, _: str | None) -> tuple[int, dict[str, str], bytes] | None:
        if path.endswith("model.safetensors") and not hub.cut_after:
            return 206, {"Content-Range": f"bytes 0-{len(content) - 1}/{len(content)}"}, content
        return None

    hub.answer = answer
    assert (resolve(REPO) / "model.safetensors").read_bytes() == content


def test_a_file_of_another_length_in_the_snapshot_is_downloaded_again(hub: Hub) -> None:
    folder = resolve(REPO)
    blob = (folder / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-100])
    assert resolve(REPO) == folder
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_additional_chat_templates_are_downloaded(hub: Hub) -> None:
    hub.files["additional_chat_templates/tool_use.jinja"] = b"{{ messages }}"
    hub.files["onnx/config.json"] = b"{}"
    folder = resolve(REPO)
    assert (folder / "additional_chat_templates" / "tool_use.jinja").read_bytes() == b"{{ messages }}"
    assert not (folder / "onnx").exists()
    assert folder.name == COMMIT
