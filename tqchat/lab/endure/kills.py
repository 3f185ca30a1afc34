"""Processes that are killed while they chat, and what is on disk afterwards."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from tqchat.engine.commands import ChatMessage, Sampling
from tqchat.engine.events import Done
from tqchat.engine.models import LoadedModel
from tqchat.engine.session import Session
from tqchat.kv import checkpoint
from tqchat.lab.endure import insist, witness
from tqchat.lab.endure.life import places
from tqchat.store import branches
from tqchat.store.database import Database
from tqchat.store.manifest import MANIFEST, read_manifest
from tqchat.store.vault import Restored, Vault
from tqchat.ui.controller.texts.transcript import for_engine

MOST_STEPS = 250
"""A cache that was read in more steps is not read again: that takes too long."""


@dataclass
class Kills:
    """What was found.

    Attributes:
        messages: Looks at messages that were on disk for certain.
        caches: Those that came back and went on as the live one would have.
        checkpoints: The same of what caches can go back to.
        read_again: Caches that a re-reading in the same steps equalled to the last bit.
        unfinished: Replies that a kill cut off, there as far as they had been written.
        restored_alive: Caches that a process brought back by itself.
    """

    kills: int = 0
    messages: int = 0
    caches: int = 0
    checkpoints: int = 0
    read_again: int = 0
    unfinished: int = 0
    restored_alive: int = 0


class Home:
    """One home for many processes in turn, and what they have told of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.paths = folder, places(folder)
        self.messages: dict[str, str] = {}
        self.goes_on: dict[str, bool] = {}
        self._checked: set[str] = set()
        self._wiped = False

    def begin(self, model: str, seed: int) -> subprocess.Popen[bytes]:
        """Start a process that lives here."""
        command = [sys.executable, "-m", "tqchat.lab.endure.life", str(self.folder), model, str(seed)]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    def hear(self, line: bytes, found: Kills) -> bool:
        """Take in a line; whether it was one."""
        if not line.endswith(b"\n"):
            return False  # cut off by the kill, or by an end of its own
        said = json.loads(line)
        insist("error" not in said, f"The chat in {self.folder} failed: {said.get('error')}")
        if "message" in said:
            self.messages[said["message"]] = said["content"]
        if "goes_on" in said:
            digest = said["goes_on"]
            self.goes_on[digest] = said["plain"] or self.goes_on.get(digest, False)
        self._wiped = self._wiped or "wiping" in said
        if "restored" in said and not self._is_excused(said["damage"]):
            self._known(said["restored"], said["damage"])
            found.restored_alive += 1
        return True

    def check(self, model: LoadedModel, found: Kills) -> None:
        """Open everything that is here.

        Raises:
            Broken: if anything is not as it was.
        """
        with Database(self.paths.database) as database:
            (whole,) = database.rows("PRAGMA integrity_check")
            insist(whole[0] == "ok", f"The database in {self.folder} is damaged: {whole[0]}")
            for message_id, content in self.messages.items():
                # A reply may have grown since; nothing of it may be gone.
                message = database.message(message_id)
                kept = message.content if message.role == "user" else message.content[: len(content)]
                insist(kept == content, f"Message {message_id} in {self.folder} lost what was committed")
            for conversation in database.conversations():
                insist(database.leases.holder(conversation.id) is None, "A dead process kept its lease")
                said = database.messages(conversation.id)
                found.unfinished += bool(said) and said[-1].status == "unfinished"
                self._check_caches(model, conversation.id, found)
                history = for_engine(said)
                if history:
                    self._answer(model, conversation.id, history)
        self._wiped = False
        found.messages += len(self.messages)

    def _check_caches(self, model: LoadedModel, conversation_id: str, found: Kills) -> None:
        vault = Vault(self.paths.caches)
        folder = vault.folder / conversation_id
        for path in [folder / MANIFEST, *branches.files(folder)]:
            if not path.exists():
                continue
            manifest = read_manifest(path)
            if manifest.rest.name in self._checked:
                continue
            self._checked.add(manifest.rest.name)
            back = vault.load(
                conversation_id,
                fingerprint=model.info.fingerprint,
                scheme=manifest.scheme,
                wanted=branches.tokens_of(folder, manifest),
            )
            problem = getattr(back, "reason", None) or getattr(back, "damage", None)
            if self._is_excused(problem):
                vault.forget(conversation_id)
                return
            insist(isinstance(back, Restored), f"The cache in {path} did not come back: {back}")
            assert isinstance(back, Restored)
            digest = witness.going_on(model, back.cache, back.tokens, manifest.scheme)
            plain = self._known(digest, back.damage)
            found.caches += 1
            if plain:
                self._read_again(model, back, digest, found)
            for one in back.checkpoints:
                cache = checkpoint.go_back(witness.copy(back.cache), one, len(back.tokens) - one.tokens)
                self._known(witness.going_on(model, cache, back.tokens[: one.tokens], manifest.scheme), None)
                found.checkpoints += 1

    def _is_excused(self, problem: str | None) -> bool:
        """Whether what is missing may be what the person was deleting."""
        return self._wiped and problem is not None and "missing" in problem

    def _known(self, digest: str, damage: str | None) -> bool:
        insist(damage is None, f"A cache in {self.folder} is damaged: {damage}")
        insist(digest in self.goes_on, f"A cache in {self.folder} goes on as none that was saved")
        return self.goes_on[digest]

    def _read_again(self, model: LoadedModel, back: Restored, digest: str, found: Kills) -> None:
        steps = witness.steps_from((self.folder / "steps" / digest).read_text())
        if len(steps) > MOST_STEPS:
            return
        cache = witness.read_again(model, back.tokens, steps)
        again = witness.going_on(model, cache, back.tokens, "fp16")
        insist(again == digest, f"A cache in {self.folder} differs from one that was read again")
        found.read_again += 1

    def _answer(self, model: LoadedModel, conversation_id: str, history: tuple[ChatMessage, ...]) -> None:
        vault = Vault(self.paths.caches)
        session = Session(model, vault.scheme(conversation_id) or "fp16")
        session.restore(vault, conversation_id, history)
        *_, done = session.send(history, Sampling(temperature=0.0, max_tokens=2))
        insist(isinstance(done, Done), f"A conversation in {self.folder} cannot go on: {done}")


def endure(
    model: LoadedModel,
    ref: str,
    kills: int,
    folder: Path,
    seed: str = "kill",
    tell: Callable[[int], None] = lambda kill: None,
) -> Kills:
    """Kill processes that chat, at random moments, and look at what they leave each time.

    Args:
        model: What they chat with, for looking.
        ref: The same, for them to load.
        folder: Where their homes are made.
        tell: Told of each kill that was survived.

    Raises:
        Broken: at the first thing that was not.
    """
    chance, found = random.Random(seed), Kills()
    homes = [Home(folder / name) for name in ("one", "two")]
    following = homes[0].begin(ref, chance.randrange(1 << 30))
    try:
        for kill in range(kills):
            home, child = homes[kill % 2], following
            # The next one, in the other home, starts up while this one is being looked after.
            following = homes[(kill + 1) % 2].begin(ref, chance.randrange(1 << 30))
            assert child.stdout is not None
            for _ in range(chance.choice((1, 4, *(chance.randrange(2, 80) for _ in range(4))))):
                insist(
                    home.hear(child.stdout.readline(), found), f"A process in {home.folder} ended by itself"
                )
            until = time.perf_counter() + chance.random() * 0.05
            while time.perf_counter() < until:
                pass
            child.kill()
            for line in child.stdout.read().splitlines(keepends=True):
                home.hear(line, found)
            insist(child.wait() == -9, f"A process in {home.folder} ended by itself")
            child.stdout.close()
            home.check(model, found)
            found.kills = kill + 1
            mx.clear_cache()
            tell(found.kills)
    finally:
        following.kill()
        following.communicate()
    return found
