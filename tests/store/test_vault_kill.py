"""Processes that are killed while they chat with a model and save. ``TQCHAT_KILLS=300`` is the long form."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.store.vault_chatter import going_on, places, transcript
from tqchat.engine import backend
from tqchat.engine.commands import Sampling
from tqchat.engine.events import Done
from tqchat.store.database import Database
from tqchat.store.manifest import MANIFEST
from tqchat.store.vault import Restored, Vault

backend.prepare()

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel

KILLS = int(os.environ.get("TQCHAT_KILLS", "30"))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough a context for conversations that go on through many kills."""
    from tests.models import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("llama"), max_position_embeddings=100_000)


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    from tqchat.engine import models

    return models.load(str(folder))


class Home:
    """One home for many processes in turn, and what they have told of it."""

    def __init__(self, folder: Path) -> None:
        self.paths = places(folder)
        self.folder = folder
        self.messages: dict[str, str] = {}
        self.goes_on: dict[str, bool] = {}
        """How a cache that may be on disk goes on; whether nothing in it was ever rounded."""
        self.saved: set[str] = set()

    def begin(self, model: Path, seed: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.store.vault_chatter", str(self.folder), str(model), str(seed)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)

    def hear(self, line: bytes) -> None:
        if not line.endswith(b"\n"):
            return
        said = json.loads(line)
        if "message" in said:
            self.messages[said["message"]] = said["content"]
        if "goes_on" in said:
            self.goes_on[said["goes_on"]] = said["plain"]
        if "saved" in said:
            self.saved.add(said["saved"])

    def check(self, model: LoadedModel) -> tuple[int, int]:
        """Open everything; how many caches came back, and how many of them a re-reading was held against."""
        import mlx.core as mx

        from tqchat.engine.session import Session

        vault, back, read = Vault(self.paths.caches), 0, 0
        with Database(self.paths.database) as database:
            assert database._connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            for message_id, content in self.messages.items():
                assert database.message(message_id).content == content
            for conversation in database.conversations():
                history = transcript(database, conversation.id)
                scheme = vault.scheme(conversation.id)
                if scheme is None:
                    assert not (vault.folder / conversation.id / MANIFEST).exists()
                    continue
                found = vault.load(conversation.id, fingerprint=model.info.fingerprint, scheme=scheme)
                assert isinstance(found, Restored), found
                assert found.damage is None
                state = found.cache
                told = going_on(model, state, found.tokens, scheme)
                assert told in self.goes_on, "it does not go on as any cache that was saved"
                back += 1
                if self.goes_on[told] and len(found.tokens) < 1000:
                    again = Session(model, scheme)
                    for _ in again._held.feed_in_chunks([*found.tokens, 5, 77]):
                        pass
                    assert {layer.trim(1) for layer in state} == {1}
                    last = mx.array([[901]])
                    logits = [model.model(last, cache=cache) for cache in (state, again._held.cache)]
                    # How many tokens are read at once moves the last bits of 16-bit keys and values.
                    mine, theirs = (x[0, -1].astype(mx.float32) for x in logits)
                    assert mx.abs(mine - theirs).max() < 0.05 * mx.abs(theirs).max()
                    read += 1
                session = Session(model, scheme)
                session.restore(vault, conversation.id, history)
                if not history:
                    continue  # killed just after it went back to the beginning
                *_, done = session.send(history, Sampling(temperature=0.0, max_tokens=2))
                assert isinstance(done, Done), done
        return back, read


def test_a_kill_at_any_moment_leaves_caches_that_go_on_as_they_were(
    tmp_path: Path, folder: Path, model: LoadedModel
) -> None:
    chance = random.Random(os.environ.get("TQCHAT_SEED", "vault kill"))
    homes = [Home(tmp_path / name) for name in ("one", "two")]
    back = read = 0
    following = homes[0].begin(folder, 0)
    try:
        for kill in range(KILLS):
            home, child = homes[kill % 2], following
            # The next one, in the other home, starts up while this one is being looked after.
            following = homes[(kill + 1) % 2].begin(folder, kill + 1)
            assert child.stdout is not None
            for _ in range(chance.choice((1, 3, 4, 5, chance.randrange(2, 25)))):
                home.hear(child.stdout.readline())
            until = time.perf_counter() + chance.random() * 0.03
            while time.perf_counter() < until:
                pass
            child.kill()
            for line in child.stdout.read().splitlines(keepends=True):
                home.hear(line)
            assert child.wait() == -9, "it ended by itself"
            child.stdout.close()
            came, held = home.check(model)
            back, read = back + came, read + held
    finally:
        following.kill()
        following.communicate()
    assert back > KILLS
    assert read
