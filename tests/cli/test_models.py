"""``tqchat models`` against a local server that answers like the hub."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.cli.test_cli import Captured
from tests.engine.hub.stand_in_hub import REPO, Hub, serving
from tests.models import tiny_llama
from tqchat.cli import main
from tqchat.engine.commands import STARTER
from tqchat.engine.hub import local_cache, other_apps

MLX = "mlx-community/tiny-4bit"


@pytest.fixture(scope="module")
def server(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with (
        pytest.MonkeyPatch.context() as patch,
        serving(llama_folder, tmp_path_factory.mktemp("hub"), patch) as hub,
    ):
        hub.others = {MLX: {"tiny.gguf": b"GGUF\x1b[2J"}}
        hub.downloads = {REPO: 12_345, MLX: 7}
        yield hub


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The server, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(other_apps, "folders", tuple)
    server.requests.clear()
    return server


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def refused(capsys: Captured, *arguments: str, code: int = 2) -> str:
    assert main(["models", *arguments]) == code
    told = capsys.readouterr()
    assert not told.out and told.err.startswith("tqchat: ") and told.err.count("\n") == 1
    return told.err


def test_search_says_what_can_be_loaded_before_anything_is_fetched(hub: Hub, capsys: Captured) -> None:
    assert main(["models", "search", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    _, preferred, other, _, problem = printed.splitlines()
    assert preferred.startswith(MLX) and preferred.endswith("no")
    assert problem.startswith(f"{MLX} holds GGUF weights only")
    assert other.startswith(REPO) and "12k" in other and "apache-2.0" in other and other.endswith("yes")
    assert main(["models", "search", "tiny", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["repo"], row["loads"]) for row in rows] == [(MLX, False), (REPO, True)]
    assert rows[1]["bytes"] > 1_000_000 and rows[1]["architecture"] == "llama"
    assert main(["models", "search", "no such model"]) == 1
    assert capsys.readouterr().out == "Nothing was found.\n"
    assert not [path for _, path, _ in hub.requests if path.endswith(".safetensors")]
    assert "at least 2" in refused(capsys, "search", "x")
    assert "--limit is 0" in refused(capsys, "search", "tiny", "--limit", "0")


def test_a_model_is_downloaded_listed_and_deleted(
    hub: Hub, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["models", "pull", REPO]) == 0
    told = capsys.readouterr()
    folder = local_cache.cached_folder(REPO)
    assert told.out == f"{REPO} is now in {folder}.\n" and "100 %" in told.err
    assert main(["models", "pull", REPO, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(folder)
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "Recommended for this machine (" in printed and "32k: auto/fp16" in printed
    assert f"\n{REPO} " in printed and f"\n{STARTER} " in printed
    assert main(["models", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["ref"], one["source"]) for one in found["local"]] == [(STARTER, "bundled"), (REPO, "hub")]
    for one in found["recommended"]:
        assert {"repo", "licence", "bytes", "context", "scheme", "obstacle"} <= one.keys()
        assert [size["tokens"] for size in one["cache"]] == [8192, 32768]
        assert all(size["bytes"] < size["fp16_bytes"] for size in one["cache"])
    assert "pass --yes" in refused(capsys, "rm", REPO)
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    assert main(["models", "rm", REPO]) == 1
    assert capsys.readouterr().out.endswith("Nothing was deleted.\n")
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert main(["models", "rm", REPO]) == 0
    assert f"Deleted {REPO}; " in capsys.readouterr().out
    assert local_cache.cached_folder(REPO) is None
    assert "not in the Hugging Face cache" in refused(capsys, "rm", REPO, "--yes", code=1)


def test_rm_deletes_nothing_outside_the_cache(hub: Hub, capsys: Captured, tmp_path: Path) -> None:
    outside = tiny_llama(tmp_path / "outside")
    for name in (str(outside), "../outside", "..", "starter", "a/../b", "a--b/c", "models--a--b", ""):
        assert "is no Hugging Face model id" in refused(capsys, "rm", name, "--yes")
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir()
    (cache / "models--org--linked").symlink_to(outside)
    assert "is a link" in refused(capsys, "rm", "org/linked", "--yes", code=1)
    assert (outside / "model.safetensors").exists()


def interrupted(hub: Hub, *arguments: str) -> str:
    """What a command says on standard error that is interrupted in the middle of the weights."""
    hub.hold.clear()
    hub.holding.clear()
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": constants.HF_HUB_CACHE}
    environment["HF_HUB_OFFLINE"] = "0"

    def partial_weights() -> list[Path]:
        blobs = Path(constants.HF_HUB_CACHE).glob("models--*/blobs/*")
        weights = hub.etag("model.safetensors")
        return [path for path in blobs if path.name == f"{weights}{local_cache.PARTIAL_SUFFIX}"]

    command = [sys.executable, "-m", "tqchat", *arguments]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not any(path.stat().st_size for path in partial_weights()):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
            hub.hold.set()
        assert process.stderr is not None
        return process.stderr.read()


def test_an_interrupted_pull_resumes(hub: Hub, capsys: Captured) -> None:
    told = interrupted(hub, "models", "pull", REPO)
    assert "again to resume" in told and "Interrupted." in told and "Traceback" not in told
    assert main(["models", "list"]) == 0
    assert "partial download" in capsys.readouterr().out
    assert main(["models", "pull", REPO]) == 0
    assert any(start for method, path, start in hub.requests if path.endswith(".safetensors"))


def test_run_says_that_its_download_resumes(hub: Hub, capsys: Captured) -> None:
    asked = ["run", "--model", REPO, "--max-tokens", "1", "Hello"]
    told = interrupted(hub, *asked)
    assert "resumes where it stopped" in told and "Interrupted." in told and "Traceback" not in told
    hub.gated = True
    try:
        assert main(asked) == 1
    finally:
        hub.gated = False
    assert "is kept, and the next download resumes it." in capsys.readouterr().err
    assert main(asked) == 0
    assert f"tqchat: Resuming the download of {REPO}: " in capsys.readouterr().err
    assert any(start for method, path, start in hub.requests if path.endswith(".safetensors"))


def test_a_partial_download_is_deleted(hub: Hub, capsys: Captured) -> None:
    blobs = local_cache.storage_folder("org/part") / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"1{local_cache.PARTIAL_SUFFIX}").write_bytes(bytes(2_000))
    assert main(["models", "rm", "org/part", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"repo": "org/part", "freed_bytes": 2_000}
    assert not blobs.exists()


def test_offline_search_and_pull_say_so_and_the_list_works(
    hub: Hub, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "Offline mode is on (HF_HUB_OFFLINE)" in refused(capsys, "search", "tiny", code=1)
    assert "offline mode is on" in refused(capsys, "pull", REPO, code=1)
    assert main(["models"]) == 0
    assert STARTER in capsys.readouterr().out
