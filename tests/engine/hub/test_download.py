from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.hub.stand_in_hub import COMMIT, REPO, Hub, serving
from tqchat.engine import models
from tqchat.engine.hub.remote import transport
from tqchat.engine.hub.remote.download_errors import DownloadCancelled, DownloadFailed
from tqchat.engine.hub.resolve import local_folder, resolve
from tqchat.errors import TqchatError


@pytest.fixture
def source(llama_folder: Path, tmp_path: Path) -> Path:
    """The uploaded model, with files that are not needed to load it."""
    folder = tmp_path / "source"
    shutil.copytree(llama_folder, folder)
    (folder / "modeling_tiny.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "README.md").write_text("# tiny")
    (folder / "consolidated.safetensors").write_bytes(b"the same again")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub-cache"


@pytest.fixture
def hub(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(transport, "back_off", lambda *_: None)
    with serving(source, cache, monkeypatch) as hub:
        yield hub


class RecordedProgress:
    """Records progress, and cancels at a number of bytes."""

    def __init__(self, cancel_at: int | None = None) -> None:
        self.reports: list[tuple[int, int]] = []
        self.cancel_at = cancel_at

    def __call__(self, done: int, total: int) -> None:
        self.reports.append((done, total))

    def cancelled(self) -> bool:
        return self.cancel_at is not None and bool(self.reports) and self.reports[-1][0] >= self.cancel_at


def weights_requests(hub: Hub) -> list[str | None]:
    """Range header of each request for the weights."""
    return [r for method, path, r in hub.requests if method == "GET" and path.endswith("model.safetensors")]


def partials(cache: Path) -> list[Path]:
    return list(cache.rglob("*.incomplete"))


def test_a_model_is_downloaded_and_loads(hub: Hub, source: Path) -> None:
    watch = RecordedProgress()
    assert local_folder(REPO) is None
    folder = resolve(REPO, watch, watch.cancelled)
    assert folder.name == COMMIT
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    total = watch.reports[0][1]
    assert watch.reports[-1] == (total, total)
    assert [done for done, _ in watch.reports] == sorted(done for done, _ in watch.reports)
    assert total == sum(path.stat().st_size for path in folder.iterdir())
    loaded = models.load(REPO)
    assert loaded.info.name == "tiny"
    assert loaded.info.ref == REPO


def test_only_files_that_a_model_needs_are_downloaded(hub: Hub) -> None:
    resolve(REPO)
    unwanted = {"modeling_tiny.py", "pytorch_model.bin", "README.md", "consolidated.safetensors"}
    assert unwanted <= set(hub.files)
    assert not hub.fetched() & unwanted


def test_a_downloaded_model_is_used_without_a_request(hub: Hub) -> None:
    folder = resolve(REPO)
    hub.requests.clear()
    assert resolve(REPO) == folder
    assert local_folder(REPO) == folder
    assert hub.requests == []


def test_a_broken_connection_is_resumed(hub: Hub) -> None:
    size = len(hub.files["model.safetensors"])
    hub.cut_after = [size // 3, size // 3]
    folder = resolve(REPO)
    step = size // 3
    assert weights_requests(hub) == [None, f"bytes={step}-", f"bytes={2 * step}-"]
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_without_range_support_the_file_is_downloaded_from_the_start(hub: Hub) -> None:
    hub.cut_after = [len(hub.files["model.safetensors"]) // 3]
    hub.resumes = False
    folder = resolve(REPO)
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_failed_download_is_resumed_next_time(hub: Hub, cache: Path) -> None:
    size = len(hub.files["model.safetensors"])
    # More failures than it retries.
    hub.cut_after = [size // 2, *[0] * 10]
    with pytest.raises(DownloadFailed):
        resolve(REPO)
    (partial,) = partials(cache)
    assert partial.stat().st_size == size // 2
    assert local_folder(REPO) is None
    hub.cut_after = []
    folder = resolve(REPO)
    assert weights_requests(hub)[-1] == f"bytes={size // 2}-"
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert partials(cache) == []


def test_a_cancelled_download_stops_and_is_resumed_next_time(hub: Hub, cache: Path) -> None:
    size = len(hub.files["model.safetensors"])
    watch = RecordedProgress(cancel_at=sum(map(len, hub.files.values())) // 3)
    with pytest.raises(DownloadCancelled, match="resumes"):
        resolve(REPO, watch, watch.cancelled)
    (partial,) = partials(cache)
    have = partial.stat().st_size
    assert 0 < have < size
    again = RecordedProgress()
    resolve(REPO, again, again.cancelled)
    assert weights_requests(hub)[-1] == f"bytes={have}-"
    assert again.reports[-1][0] == again.reports[-1][1]


def test_two_downloads_of_one_model_do_not_corrupt_it(hub: Hub) -> None:
    hub.hold.clear()
    found: list[Path | TqchatError] = []

    def fetch() -> None:
        try:
            found.append(resolve(REPO))
        except TqchatError as error:
            found.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while hub.sent == 0 and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    hub.hold.set()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2
    assert isinstance(found[0], Path)
    assert found[0] == found[1]
    assert (found[0] / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_file_with_a_wrong_checksum_is_deleted(hub: Hub, cache: Path) -> None:
    hub.damaged = {"model.safetensors"}
    with pytest.raises(DownloadFailed, match="damaged"):
        resolve(REPO)
    assert partials(cache) == []
    hub.damaged = set()
    resolve(REPO)


def test_a_small_file_with_a_wrong_git_hash_is_deleted_and_one_of_the_cache_replaced(
    hub: Hub, cache: Path
) -> None:
    content = hub.files["tokenizer.json"]
    as_git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def change(table: dict[str, Any]) -> None:
        row = next(one for one in table["siblings"] if one["rfilename"] == "tokenizer.json")
        row["blobId"] = as_git

    hub.change_listing = change
    hub.damaged = {"tokenizer.json"}
    with pytest.raises(DownloadFailed, match=r"tokenizer\.json of somebody/tiny arrived damaged"):
        resolve(REPO)
    assert partials(cache) == []
    (cache / "models--somebody--tiny" / "blobs" / as_git).write_bytes(bytes(len(content)))
    hub.damaged = set()
    assert (resolve(REPO) / "tokenizer.json").read_bytes() == content


def fails(reason: str) -> None:
    with pytest.raises(TqchatError) as caught:
        resolve(REPO)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_an_unknown_model_is_one_sentence(hub: Hub) -> None:
    hub.missing = True
    fails("There is no model somebody/tiny")


def test_a_gated_model_is_one_sentence(hub: Hub) -> None:
    hub.gated = True
    fails("licence")


def test_a_server_error_is_one_sentence(hub: Hub) -> None:
    hub.broken = True
    fails("503")


def test_a_repo_without_a_model_is_one_sentence(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    fails("no weights")
    del hub.files["config.json"]
    fails("no config.json")


def test_offline_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    template = nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    fails("cannot be reached")


def test_offline_mode_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fails("offline mode")
    assert hub.requests == []


def test_a_full_disk_is_reported_before_the_download(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10, 10, 0)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    fails("free some")
    assert hub.fetched() <= {"config.json", "tokenizer_config.json"}
    assert not list(cache.rglob("*"))


@pytest.mark.parametrize("sha", ["../../../escape", "", "C0FFEE"])
def test_malformed_hashes_are_rejected(hub: Hub, sha: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.engine.hub.stand_in_hub.COMMIT", sha)
    fails("version")
    assert not hub.fetched()


def test_a_snapshot_without_weights_is_downloaded_again(hub: Hub) -> None:
    folder = resolve(REPO)
    weights = folder / "model.safetensors"
    weights.resolve().unlink()
    weights.unlink()
    assert local_folder(REPO) is None
    assert resolve(REPO) == folder
    assert weights.read_bytes() == hub.files["model.safetensors"]
