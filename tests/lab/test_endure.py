"""Short runs of ``tqchat lab endure``; ``TQCHAT_KILLS=300`` and ``TQCHAT_MUTATIONS=5000`` for long ones."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.engine import tiny
from tests.models import tiny_llama
from tqchat.cli import main
from tqchat.engine import models
from tqchat.engine.models import LoadedModel
from tqchat.kv.scheme import SCHEMES
from tqchat.lab.endure import CheckFailed, full_disk, kills, mutations

KILLS = int(os.environ.get("TQCHAT_KILLS", "30"))
MUTATIONS = int(os.environ.get("TQCHAT_MUTATIONS", "300"))
SEED = os.environ.get("TQCHAT_SEED", "endure")
KINDS = {"full": None, "sliding": tiny.SLIDING, "hybrid": tiny.HYBRID}
LONG_CONTEXT = {"max_position_embeddings": 100_000}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder, config = tmp_path_factory.mktemp("model"), KINDS[request.param]
    if config is None:
        return models.load(str(tiny_llama(folder, **LONG_CONTEXT)))
    return models.load(str(tiny.write(folder, config | LONG_CONTEXT)))


def full_attention(model: LoadedModel) -> bool:
    return model.info.architecture == "llama"


def test_kills_at_any_moment_lose_nothing(model: LoadedModel, tmp_path: Path) -> None:
    count = KILLS // 5 * (3 if full_attention(model) else 1)
    found = kills.endure(model, str(model.folder), count, tmp_path, SEED)
    assert found.kills == count
    assert found.messages > count
    if count >= 30:
        assert found.caches + found.restored_by_chat > 0
        assert found.unfinished
        assert found.prefilled_again > 0 or not full_attention(model)
        assert found.checkpoints > 0 or full_attention(model)
        assert found.scheme_changes and found.branches


def test_no_damaged_cache_is_accepted(model: LoadedModel, tmp_path: Path) -> None:
    schemes = [scheme.name for scheme in SCHEMES] if full_attention(model) else ["fp16", "turbo0v4", "turbo2"]
    found = mutations.endure(model, schemes, MUTATIONS // 3, tmp_path, SEED)
    assert found.refused and found.used
    assert 0 < found.worst <= mutations.MAX_MEMORY_RATIO


def test_the_check_notices_a_wrong_cache(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without checksums wrong caches are accepted; the test must notice.
    monkeypatch.setattr("tqchat.store.vault.segments.hashlib", SimpleNamespace(sha256=ConstantHash))
    with pytest.raises(CheckFailed, match=r"wrong cache|Other tokens|Loading raised"):
        mutations.endure(model, ["fp16"], 300, tmp_path, SEED)


class ConstantHash:
    """A checksum that is the same for any content."""

    def __init__(self, content: bytes = b"") -> None:
        pass

    def update(self, content: object) -> None:
        """Ignore the content."""

    def hexdigest(self) -> str:
        return "0" * 64


def test_the_chat_continues_on_a_disk_that_fills_up_at_any_write(model: LoadedModel, tmp_path: Path) -> None:
    assert full_disk.endure(model, str(model.folder), tmp_path).refused > 15


def test_the_command_prints_its_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_llama(tmp_path / "model", **LONG_CONTEXT)
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(tmp_path / "work"))
    options = ["--model", str(folder), "--kills", "2", "--mutations", "20", "--schemes", "turbo0v4"]
    options += ["--files", "2", "--readers", "config,exports"]
    assert main(["lab", "endure", *options]) == 0
    shown = capsys.readouterr().out
    for part in (
        "kills",
        "committed messages checked, none lost",
        "mutations",
        "mutated files of exports",
        "saves refused by a full disk",
    ):
        assert part in shown
    assert not (tmp_path / "work").exists()
