"""A conversation continues in another process with the same tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.engine import tiny as tiny_models
from tests.engine.talk import GREEDY, TALE, assistant, greedy, held_is_consistent, send, user
from tests.kv.tiny import REPRESENTATIVE
from tests.models import STARTER_FOLDER
from tqchat import kv
from tqchat.engine import models
from tqchat.engine.cache import persistence
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import ChatMessage
from tqchat.engine.events import SchemeChanged
from tqchat.engine.models import LoadedModel
from tqchat.engine.session import Session
from tqchat.kv.storage.rounding_history import UNROUNDED_BITS
from tqchat.store.vault import Restored, Vault
from tqchat.store.vault.segments import EARLIER_PREFIX

NAMES = list(REPRESENTATIVE)
STORY = [user(TALE)]
MORE = greedy(16)

CONTINUE_SCRIPT = """
import json, sys
from pathlib import Path
from tqchat.engine import models
from tqchat.engine.commands import ChatMessage, Sampling
from tqchat.engine.session import Session
from tqchat.kv.storage.rounding_history import UNROUNDED_BITS
from tqchat.store.vault import Vault
model, vault = models.load(sys.argv[3]), Vault(Path(sys.argv[1]))
for scheme, transcript in json.loads(sys.argv[2]).items():
    messages = [ChatMessage(*turn) for turn in transcript]
    session = Session(model, scheme)
    restored, reason = session.restore(vault, scheme, messages[:-1])
    *_, done = session.send(messages, Sampling(temperature=0, max_tokens=16))
    print(json.dumps([restored, reason, done.text, done.counts.restored, done.counts.reused, session.tokens]))
"""


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "vault")


def saved_conversation(
    model: LoadedModel, scheme: str, vault: Vault, name: str = "story"
) -> tuple[Session, list[ChatMessage]]:
    """A saved conversation with packed tokens, and its transcript with one more question."""
    session = Session(model, scheme)
    done = send(session, STORY, greedy(3))
    assert session.changed
    assert session.save(vault, name) > 0
    assert not session.changed
    return session, [*STORY, assistant(done.text), user("What is my name? And what happened then?")]


def test_another_process_continues_with_the_same_tokens(starter: LoadedModel, vault: Vault) -> None:
    schemes = [*NAMES, "turbo1v1"]
    here = {scheme: saved_conversation(starter, scheme, vault, scheme) for scheme in schemes}
    saved = {scheme: len(session.tokens) for scheme, (session, _) in here.items()}
    transcripts = {
        scheme: [(message.role, message.content) for message in asked] for scheme, (_, asked) in here.items()
    }
    arguments = [str(vault.folder), json.dumps(transcripts), str(STARTER_FOLDER)]
    other = subprocess.run(
        [sys.executable, "-c", CONTINUE_SCRIPT, *arguments],
        capture_output=True,
        text=True,
        env=os.environ,
        timeout=240,
        check=False,
    )
    assert other.returncode == 0, other.stderr
    lines = [json.loads(line) for line in other.stdout.splitlines()]
    for scheme, (restored, reason, text, counted, reused, tokens) in zip(schemes, lines, strict=True):
        session, asked = here[scheme]
        assert (scheme, restored, reason) == (scheme, saved[scheme], None)
        assert (scheme, counted, reused) == (scheme, saved[scheme], 0)
        never_interrupted = send(session, asked, MORE)
        assert (scheme, text) == (scheme, never_interrupted.text)
        assert tokens == list(session.tokens)
        assert never_interrupted.counts.generated > 1


@pytest.mark.parametrize("scheme", NAMES)
def test_a_restored_cache_counts_the_same_bytes(starter: LoadedModel, vault: Vault, scheme: str) -> None:
    session, asked = saved_conversation(starter, scheme, vault)
    again = Session(starter, scheme)
    again.restore(vault, "story", asked[:-1])
    assert again.memory().bytes == session.memory().bytes
    assert again.memory().layers_compressed == session.memory().layers_compressed
    assert again.tokens == session.tokens
    assert held_is_consistent(again)


def test_rounding_is_remembered_across_a_restart(starter: LoadedModel, vault: Vault) -> None:
    session, asked = saved_conversation(starter, "turbo0v2", vault)
    list(session.set_scheme("turbo0v4"))
    session.save(vault, "story")
    again = Session(starter, "turbo0v4")
    again.restore(vault, "story", asked[:-1])
    (change,) = again.set_scheme("fp16")
    assert change.kept_rounding  # type: ignore[union-attr]


WALK = ["turbo3", "affine4", "turbo4", "affine4", "turbo3", "fp16", "turbo3", "turbo4", "fp16", "affine4"]
"""After turbo4: with its end and its beginning every pair of the four, both ways."""


def test_changes_with_restarts_in_between_add_no_errors(starter: LoadedModel, vault: Vault) -> None:
    prompt = starter.tokenizer.encode(TALE)[:160]
    raw, cache = (PromptCache(starter, scheme) for scheme in ("fp16", "turbo4"))
    for one in (raw, cache):
        one.prefill(prompt)
        one.settle(certain=True)

    def error(cache: list[Any]) -> float:
        return sum(
            float((a.fetch(mx.float32) - b.fetch(mx.float32)).square().sum())
            for layer, exact in zip(cache, raw.cache, strict=True)
            for a, b in zip(layer.sides, exact.sides, strict=True)
        )

    first = {scheme: error(kv.convert(cache.cache, scheme)) for scheme in {"turbo4", *WALK}}
    for scheme in [*WALK, "fp16", "turbo4", "turbo3"]:
        cache.convert(scheme)
        assert error(cache.cache) < 1.001 * first[scheme]
        assert cache.report().rounded_tokens == 0 or scheme in ("affine4", "fp16")
        persistence.save(cache, vault, "story", lambda: False)
        cache = PromptCache(starter, scheme)
        found = vault.load("story", fingerprint=starter.info.fingerprint, scheme=scheme)
        assert isinstance(found, Restored) and cache.replace_with(found) is None


def test_checkpoints_go_back_after_a_restart(tmp_path: Path, vault: Vault) -> None:
    config = tiny_models.SLIDING | {"sliding_window": 256, "num_hidden_layers": 2}
    model = models.load(str(tiny_models.write(tmp_path / "model", config)))
    session = Session(model, "turbo4")
    asked = [user("one two three four five six seven eight nine ten " * 40)]
    send(session, asked, greedy(3))

    def windows(session: Session) -> list[Any]:
        layers = [layer for one in session._cache.checkpoints for layer in one.layers.values()]
        return [side.fetch(mx.float32).tolist() for layer in layers for side in layer.sides]

    list(session.set_scheme("turbo2"))
    session.save(vault, "talk")
    again, without = (Session(model, "turbo2") for _ in range(2))
    assert again.restore(vault, "talk", asked)[0]
    for path in (vault.folder / "talk").glob(f"{EARLIER_PREFIX}*"):
        path.unlink()
    without.restore(vault, "talk", asked)
    for one in (session, again, without):
        list(one.set_scheme("turbo4"))
    assert windows(again) == windows(session) != windows(without)


def test_a_short_cache_goes_back_to_a_scheme_of_a_longer_tail(starter: LoadedModel, vault: Vault) -> None:
    cache, again = (PromptCache(starter, "trellis3") for _ in range(2))
    tokens = starter.tokenizer.encode(TALE)[:85]
    cache.prefill(tokens[:40])
    cache.pack_due()
    cache.convert("turbo4")  # all are in the tail, and the fit is kept
    cache.prefill(tokens[40:])
    cache.convert("turbo2")
    persistence.save(cache, vault, "short", lambda: False)
    found = vault.load(
        "short", fingerprint=starter.info.fingerprint, scheme=cache.scheme, transcript=cache.tokens
    )
    assert isinstance(found, Restored)
    again.scheme = cache.scheme
    again.clear()
    assert again.replace_with(found) is None
    for one in (cache, again):
        one.convert("turbo4")
    for layer, other in zip(cache.cache, again.cache, strict=True):
        (_, left), (_, right) = layer.state, other.state
        assert left.keys() == right.keys() and "key_fitted_balance" in left
        assert all(mx.array_equal(left[name], right[name]) for name in left)


def test_a_conversation_without_a_saved_cache_is_re_read(starter: LoadedModel, vault: Vault) -> None:
    session = Session(starter)
    assert session.restore(vault, "new", []) == (0, None)
    assert session.restore(vault, "new", STORY) == (0, None)
    restored, reason = session.restore(vault, "old", [*STORY, assistant("Once upon a time.")])
    assert restored == 0
    assert reason is not None
    assert "tokens are read again" in reason
    short = replace(starter, info=replace(starter.info, context_limit=20))
    _, reason = Session(short).restore(vault, "old", [*STORY, assistant("Once upon a time.")])
    assert reason is not None and "at most 20 tokens" in reason and "read again" not in reason


def test_a_cache_saved_under_another_scheme_is_restored_and_converted(
    starter: LoadedModel, vault: Vault
) -> None:
    saved, asked = saved_conversation(starter, "turbo0v4", vault)
    session = Session(starter, "affine8")
    restored, _ = session.restore(vault, "story", asked)
    assert (restored, session.scheme) == (len(saved.tokens), "turbo0v4")
    *_, changed = session.set_scheme("affine8")
    assert isinstance(changed, SchemeChanged) and changed.tokens == restored
    assert session.tokens == saved.tokens[:restored] and session.scheme == "affine8"


@pytest.mark.parametrize("what", ["weights", "template", "config"])
def test_another_version_of_the_model_is_refused(
    llama_folder: Path, tiny: LoadedModel, vault: Vault, tmp_path: Path, what: str
) -> None:
    from tests.models import tiny_llama

    session = Session(tiny, "turbo0v4")
    said = [user("Hello"), assistant(send(session, [user("Hello")]).text)]
    session.save(vault, "talk")

    same = models.load(str(tiny_llama(tmp_path / "same")))
    assert same.info.fingerprint == tiny.info.fingerprint
    assert Session(same, "turbo0v4").restore(vault, "talk", said)[0] > 0

    folder = tiny_llama(tmp_path / what, seed=1 if what == "weights" else 0)
    if what == "template":
        table = json.loads((folder / "tokenizer_config.json").read_text())
        table["chat_template"] += " "
        (folder / "tokenizer_config.json").write_text(json.dumps(table))
    if what == "config":
        table = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(table | {"rope_theta": 20000.0}))
    other = models.load(str(folder))
    again = Session(other, "turbo0v4")
    restored, reason = again.restore(vault, "talk", said)
    assert restored == 0
    assert again.tokens == ()
    assert reason is not None
    assert "another model" in reason
    assert send(again, [*said, user("Well?")], greedy(3)).counts.restored == 0


def test_an_edited_transcript_keeps_the_common_prefix(starter: LoadedModel, vault: Vault) -> None:
    session, asked = saved_conversation(starter, "turbo0v4", vault)
    session_length = len(session.tokens)
    edited = [asked[0], assistant("Once there was no dog."), asked[2]]
    again = Session(starter, "turbo0v4")
    restored, reason = again.restore(vault, "story", edited)
    assert 0 < restored < session_length
    assert reason is not None
    assert f"from token {restored + 1}" in reason
    done = send(again, edited)
    assert done.counts.restored == restored
    assert done.text == send(Session(starter, "turbo0v4"), edited).text


def test_a_transcript_shorter_than_the_cache_is_restored(starter: LoadedModel, vault: Vault) -> None:
    saved_conversation(starter, "turbo0v4", vault)
    again = Session(starter, "turbo0v4")
    restored, reason = again.restore(vault, "story", STORY)
    assert restored > 0
    assert reason is None


def test_a_transcript_that_cannot_be_rendered_restores_nothing(starter: LoadedModel, vault: Vault) -> None:
    saved_conversation(starter, "turbo0v4", vault)
    again = Session(starter, "turbo0v4")
    restored, _ = again.restore(vault, "story", [])
    assert restored == 0
    assert again.tokens == ()


@pytest.mark.parametrize("kind", ["sliding", "recurrent"])
def test_caches_that_cannot_be_trimmed_are_restored(tmp_path: Path, vault: Vault, kind: str) -> None:
    config = {"sliding": tiny_models.SLIDING, "recurrent": tiny_models.RECURRENT}[kind]
    model = models.load(str(tiny_models.write(tmp_path / kind, config)))
    session = Session(model, "turbo0v4")
    asked = [user("one two three four five six seven eight nine ten " * 12)]
    # Prefilled only: the cache then holds exactly the transcript's tokens.
    list(session.set_scheme("turbo0v4", reread=True, messages=asked))
    session.save(vault, "talk")
    again = Session(model, "turbo0v4")
    restored, reason = again.restore(vault, "talk", asked)
    assert (restored, reason) == (len(session.tokens), None)
    first, second = send(session, asked), send(again, asked)
    assert first.text == second.text
    assert first.counts.reused == second.counts.restored == restored


def test_a_cache_with_other_layers_is_refused(starter: LoadedModel, tiny: LoadedModel, vault: Vault) -> None:
    # The manifest matches, but the layers are another model's, as if two fingerprints collided.
    session = Session(tiny, "turbo0v4")
    send(session, [user("Hello")], greedy(2))
    alike = replace(starter, info=replace(starter.info, fingerprint=tiny.info.fingerprint))
    session.save(vault, "talk")
    again = Session(alike, "turbo0v4")
    restored, reason = again.restore(vault, "talk", [user("Hello")])
    assert restored == 0
    assert reason is not None
    assert "layers" in reason
    assert send(again, [user("Hello")], GREEDY).text


@pytest.mark.parametrize(
    ("tail", "fine", "taken"), [(64, 0, True), (16, 208, True), (1 << 20, 0, False), (16, 1 << 20, False)]
)
def test_a_saved_cache_may_have_the_tail_of_another_version(
    starter: LoadedModel, tail: int, fine: int, taken: bool
) -> None:
    held = PromptCache(starter, "turbo3")
    saved: list[Any] = [
        kv.SchemeCache(replace(layer.scheme, tail=tail, fine=fine), layer.dtype) for layer in held.cache
    ]
    reason = held.replace_with(Restored(saved, [], (UNROUNDED_BITS, UNROUNDED_BITS)))
    assert (reason is None) == taken == (held.cache is saved or held.cache[0] is saved[0])
