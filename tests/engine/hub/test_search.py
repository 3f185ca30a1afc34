"""Search on the hub, and what is read of a model before it is downloaded."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.engine.hub.stand_in_hub import REPO, Hub, serving
from tqchat.engine.hub.remote import search, transport
from tqchat.engine.hub.remote.search import Hit, RemoteModel, SearchFailed

MLX = "mlx-community/fox-1B-4bit"
SMALL = "mlx-community/fox-small"
GGUF = "someone/fox-gguf"


@pytest.fixture(scope="module")
def server(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with (
        pytest.MonkeyPatch.context() as patch,
        serving(llama_folder, tmp_path_factory.mktemp("hub"), patch) as hub,
    ):
        config = json.loads(hub.files["config.json"])
        hub.others = {
            MLX: hub.files | {"config.json": json.dumps(config | {"max_position_embeddings": 4321}).encode()},
            SMALL: hub.files | {"config.json": json.dumps(config | {"model_type": "odd\x1b[2J"}).encode()},
            GGUF: {"fox.gguf": b"GGUF", "config.json": hub.files["config.json"]},
        }
        yield hub


@pytest.fixture
def hub(server: Hub) -> Iterator[Hub]:
    server.downloads = {REPO: 7, GGUF: 900, SMALL: 20, MLX: 500}
    server.searches.clear()
    server.requests.clear()
    yield server
    server.answer = lambda *_: None
    server.change_listing = lambda _: None
    server.gated = False


def failure(words: str = "fox") -> str:
    with pytest.raises(SearchFailed) as caught:
        search.search(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def answer_with(hub: Hub, content: Any, status: int = 200) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    hub.answer = lambda path, _: (status, {}, body) if path == "/api/models" else None


def test_models_of_the_preferred_author_come_first_each_part_by_downloads(hub: Hub) -> None:
    assert search.search("  fox ") == [Hit(MLX, 500), Hit(SMALL, 20), Hit(GGUF, 900)]
    first, others = hub.searches
    assert (first["search"], first["author"], first["sort"]) == ("fox", "mlx-community", "downloads")
    assert "author" not in others and others["sort"] == "downloads"
    assert int(first["limit"]) <= 50 and int(others["limit"]) <= 50
    assert search.search("mlx-community/fox-1B") == [Hit(MLX, 500)]
    assert search.search("nothing like it") == []


def test_a_model_is_described_before_its_weights_are_fetched(hub: Hub) -> None:
    found = search.inspect(MLX)
    size = sum(len(content) for name, content in hub.others[MLX].items() if not name.endswith(".md"))
    assert found == RemoteModel(MLX, size, "llama", "", 4321, "apache-2.0")
    assert not [path for _, path, _ in hub.requests if path.endswith(".safetensors")]


def test_what_cannot_be_loaded_is_said_before_anything_is_fetched(hub: Hub) -> None:
    found = {one.repo: one.problem or "" for one in search.inspect_all([MLX, SMALL, GGUF, "no/such"])}
    assert found[MLX] == ""
    assert "does not know its architecture" in found[SMALL] and "\x1b" not in found[SMALL]
    assert "GGUF weights only" in found[GGUF]
    assert "There is no model no/such" in found["no/such"]
    hub.gated = True
    assert "wants its licence accepted" in (search.inspect(MLX).problem or "")


@pytest.mark.parametrize(
    "row",
    [
        {"id": "../../etc", "downloads": 1},
        {"id": "mlx-community/a\x1b[2Jb", "downloads": 1},
        {"id": "mlx-community/a--b", "downloads": 1},
        {"id": "mlx-community", "downloads": 1},
        {"id": 5},
        {"id": None, "modelId": "mlx-community/other"},
        "mlx-community/text",
        None,
    ],
    ids=str,
)
def test_entries_that_are_no_repos_are_left_out(hub: Hub, row: Any) -> None:
    answer_with(hub, [row, {"id": MLX, "downloads": "many"}, {"modelId": SMALL, "downloads": True}])
    assert search.search("fox") == [Hit(MLX, 0), Hit(SMALL, 0)]


def test_answers_that_are_none_are_reported_in_one_sentence(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(hub, b"<html>Log in")
    assert "a web page came instead" in failure()
    answer_with(hub, {"error": "?"})
    assert "a web page came instead" in failure()
    answer_with(hub, b"[" * 100_000)
    assert "a web page came instead" in failure()
    answer_with(hub, b"", 503)
    assert failure() == "Hugging Face answers 503; try again later."
    answer_with(hub, b"", 429)
    assert "limits the number of searches" in failure()
    answer_with(hub, b" " * 2_000)
    monkeypatch.setattr(transport, "MAX_SEARCH_BYTES", 1_000)
    assert "sends more than 1.00 kB for a search" in failure()


def test_without_a_connection_a_search_says_what_to_check(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert failure() == ("Hugging Face cannot be reached at 127.0.0.1: check HF_ENDPOINT and the connection.")
    monkeypatch.setattr(constants, "ENDPOINT", "nowhere")
    assert "HF_ENDPOINT is 'nowhere'" in failure()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert failure() == "Offline mode is on (HF_HUB_OFFLINE), so the hub is not searched."


def test_a_hub_that_does_not_answer_holds_nothing_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hold(path: str, _: str | None) -> None:
        release.wait(30)

    hub.answer = hold
    monkeypatch.setattr(search, "TIME_LIMIT_S", 0.2)
    try:
        assert "did not answer the search in time" in failure()
        assert list(search.inspect_all([MLX, GGUF])) == []
        monkeypatch.setattr(search, "TIME_LIMIT_S", 60.0)
        stop = threading.Event()
        threading.Timer(0.1, stop.set).start()
        assert list(search.inspect_all([MLX], stop.is_set)) == []
    finally:
        release.set()
