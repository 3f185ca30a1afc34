"""Checkpoints of caches that cannot be trimmed, live and after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine import tiny
from tests.engine.talk import assistant, greedy, held_is_consistent, of, send, user
from tests.models import tiny_llama
from tqchat.engine import models
from tqchat.engine.cache.prompt_cache import MAX_CHECKPOINTS, MIN_CHECKPOINTS
from tqchat.engine.commands import ChatMessage, Limits
from tqchat.engine.events import Done, Failed, Notice
from tqchat.engine.models import LoadedModel
from tqchat.engine.session import Session
from tqchat.kv.memory import predict_bytes
from tqchat.kv.scheme import parse_scheme
from tqchat.store.vault import Vault
from tqchat.store.vault.manifest import MANIFEST, read_manifest

KINDS = {"sliding": tiny.SLIDING, "recurrent": tiny.RECURRENT, "hybrid": tiny.HYBRID}
TALE = "One two three four five six seven eight nine ten. " * 12


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return models.load(str(tiny.write(tmp_path_factory.mktemp("model"), KINDS[request.param])))


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "vault")


def talk(session: Session, turns: int) -> list[ChatMessage]:
    """A conversation of some turns, each of them answered."""
    said: list[ChatMessage] = []
    for turn in range(turns):
        said.append(user(f"{turn} {TALE}"))
        said.append(assistant(send(session, said, greedy(12)).text))
    return said


def checkpoint_tokens(session: Session) -> list[int]:
    return [one.tokens for one in session._cache.checkpoints]


@pytest.mark.parametrize("scheme", ["fp16", "turbo0v4"])
def test_regenerating_prefills_only_the_generation_prompt(model: LoadedModel, scheme: str) -> None:
    session = Session(model, scheme)
    said = talk(session, 2)[:-1]
    first = send(session, said, greedy(12))
    events = list(session.send(said, greedy(12)))
    again = events[-1]
    assert isinstance(again, Done)
    assert not of(events, Notice)
    assert again.text == first.text
    assert again.counts.reused == checkpoint_tokens(session)[-1]
    assert again.counts.prefilled < 12
    assert held_is_consistent(session)


def test_an_edit_goes_back_to_the_checkpoint_before_it(model: LoadedModel) -> None:
    session = Session(model, "fp16")
    said = talk(session, 2)
    edited = [*said[:-2], user(f"Something else. {TALE}")]
    turn = checkpoint_tokens(session)[0]
    straight = Session(model, "fp16")
    for _ in straight._cache.prefill_in_chunks(session.tokens[:turn]):
        pass
    done = send(session, edited, greedy(12))
    assert done.counts.reused == turn
    assert done.text == send(straight, edited, greedy(12)).text
    assert session.tokens == straight.tokens


def test_checkpoints_survive_a_restart_and_are_saved_once(model: LoadedModel, vault: Vault) -> None:
    session = Session(model, "turbo0v4")
    said = talk(session, 2)
    session.save(vault, "talk")
    again = Session(model, "turbo0v4")
    # A random model's reply may be tokenised differently as part of the transcript.
    assert again.restore(vault, "talk", said)[0] in (len(session.tokens), checkpoint_tokens(session)[-1])
    assert checkpoint_tokens(again) == checkpoint_tokens(session)
    mine, theirs = (send(one, said[:-1], greedy(12)) for one in (again, session))
    assert mine.text == theirs.text
    assert mine.counts.restored == theirs.counts.reused == checkpoint_tokens(session)[-1]
    stored = [one.stored for one in again._cache.checkpoints]
    again.save(vault, "talk")
    manifest = read_manifest(vault.folder / "talk" / MANIFEST)
    assert [one.file for one in manifest.checkpoints] == stored
    assert {path.name for path in (vault.folder / "talk").glob("*.safetensors")} == manifest.files


def test_a_restart_with_an_edited_transcript_uses_a_checkpoint(model: LoadedModel, vault: Vault) -> None:
    session = Session(model, "turbo0v4")
    said = talk(session, 2)
    session.save(vault, "talk")
    again = Session(model, "turbo0v4")
    restored, reason = again.restore(vault, "talk", [*said[:-1], assistant("It was not what I said.")])
    assert restored == checkpoint_tokens(session)[-1]
    assert reason is not None
    assert "differ" in reason


def test_a_scheme_change_converts_checkpoints(model: LoadedModel) -> None:
    session = Session(model, "fp16")
    said = talk(session, 2)
    before = checkpoint_tokens(session)
    list(session.set_scheme("turbo0v4"))
    assert checkpoint_tokens(session) == before
    done = send(session, said[:-1], greedy(12))
    assert done.counts.reused == before[-1]
    assert held_is_consistent(session)


def test_damage_costs_the_tokens_after_the_last_usable_checkpoint(model: LoadedModel, vault: Vault) -> None:
    session = Session(model, "fp16")
    said = talk(session, 3)
    session.save(vault, "talk")
    manifest = read_manifest(vault.folder / "talk" / MANIFEST)
    (vault.folder / "talk" / manifest.rest.name).write_bytes(b"")
    again = Session(model, "fp16")
    restored, reason = again.restore(vault, "talk", said)
    assert reason is not None
    assert "damaged" in reason
    settled = manifest.pieces[-1].used if manifest.pieces else 0
    expected = max((one for one in checkpoint_tokens(session) if one <= settled), default=0)
    assert restored == expected
    straight = Session(model, "fp16")
    if restored:  # prefilled in the same chunks
        talk(straight, checkpoint_tokens(session).index(restored))
        straight._cache.prefill(session.tokens[len(straight.tokens) : restored])
    mine, theirs = (send(one, said[:-1], greedy(12)) for one in (again, straight))
    assert mine.text == theirs.text


def test_checkpoints_are_bounded_and_counted(model: LoadedModel) -> None:
    session = Session(model, "fp16")
    talk(session, MAX_CHECKPOINTS + 2)
    report = session.memory()
    assert MIN_CHECKPOINTS <= len(checkpoint_tokens(session)) <= MAX_CHECKPOINTS
    assert checkpoint_tokens(session) == sorted(checkpoint_tokens(session))
    assert report.checkpoint_bytes > 0
    layers = report.shared_bytes + sum(layer.bytes for layer in report.layers)
    assert report.bytes == layers + report.checkpoint_bytes
    assert len(checkpoint_tokens(session)) == MIN_CHECKPOINTS or report.checkpoint_bytes <= layers


@pytest.fixture(scope="module")
def long_window(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A window that schemes pack."""
    config = tiny.SLIDING | {"sliding_window": 256, "num_hidden_layers": 2}
    return models.load(str(tiny.write(tmp_path_factory.mktemp("window"), config)))


def test_forecasts_of_a_scheme_change_include_checkpoints(long_window: LoadedModel) -> None:
    session = Session(long_window, "fp16")
    said: list[ChatMessage] = []
    for turn in range(2):
        said.append(user(f"{turn} {TALE * 2}"))
        said.append(assistant(send(session, said, greedy(4)).text))
    for scheme in ("turbo4", "turbo0v2", "fp16", "affine4"):
        predicted = predict_bytes(session.memory(), parse_scheme(scheme))
        assert session._memory.predicted_bytes(session._cache, scheme, len(session.tokens)) == predicted
        list(session.set_scheme(scheme))
        report = session.memory()
        assert report.checkpoint_bytes > report.bytes // 3
        assert (scheme, report.bytes) == (scheme, predicted)


def test_a_prompts_checkpoint_counts_before_it_is_read(long_window: LoadedModel) -> None:
    said = [user(f"0 {TALE * 3}")]
    done = send(Session(long_window, "fp16"), said, greedy(1))
    report, prompt = done.report, done.counts.prompt
    session = Session(long_window, "fp16")
    predicted = session._memory.predicted_bytes(session._cache, "fp16", prompt)
    further = report.layers[1].bytes // report.tokens * (report.tokens - prompt)
    assert predicted == report.bytes - further
    session.limits = Limits(budget=predicted - 1)
    (failed,) = of(list(session.send(said, greedy(1))), Failed)
    assert "more than" in failed.message


def test_a_cache_that_can_be_trimmed_has_no_checkpoints(tmp_path: Path) -> None:
    session = Session(models.load(str(tiny_llama(tmp_path / "llama"))), "turbo0v4")
    talk(session, 1)
    assert not session._cache.checkpoints
