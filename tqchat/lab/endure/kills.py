"""Kills chatting processes at random moments and checks what is on disk afterwards."""

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
from tqchat.lab.endure import continuation, require
from tqchat.lab.endure.random_chat import places
from tqchat.store.database import Database
from tqchat.store.vault import Restored, Vault, branches
from tqchat.store.vault.manifest import MANIFEST, read_manifest
from tqchat.ui.controller.texts.transcript import for_engine

MAX_STEPS = 250
"""Caches read in more forward passes are not read again: that takes too long."""


@dataclass
class Kills:
    """Counts of successful checks.

    Attributes:
        messages: Checks of committed messages.
        caches: Restored caches that continue as the live one did.
        checkpoints: Checkpoints of which the same holds.
        read_again: FP16 caches equal, bit for bit, to a re-reading in the same steps.
        unfinished: Replies cut off by a kill and stored up to the last write.
        restored_alive: Caches that the next process restored by itself.
    """

    kills: int = 0
    messages: int = 0
    caches: int = 0
    checkpoints: int = 0
    read_again: int = 0
    unfinished: int = 0
    restored_alive: int = 0


class Home:
    """A data folder used by many processes one after another, and what they reported about it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.paths = folder, places(folder)
        self.messages: dict[str, str] = {}
        self.goes_on: dict[str, bool] = {}
        self._checked: set[str] = set()
        self._wiped = False

    def begin(self, model: str, seed: int) -> subprocess.Popen[bytes]:
        """Start a chatting process in this folder."""
        command = [sys.executable, "-m", "tqchat.lab.endure.random_chat", str(self.folder), model, str(seed)]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    def hear(self, line: bytes, found: Kills) -> bool:
        """Process a line of the child's output; ``False`` if it is incomplete."""
        if not line.endswith(b"\n"):
            return False  # cut off by the kill
        said = json.loads(line)
        require("error" not in said, f"The chat in {self.folder} failed: {said.get('error')}")
        if "message" in said:
            self.messages[said["message"]] = said["content"]
        if "goes_on" in said:
            digest = said["goes_on"]
            self.goes_on[digest] = said["plain"] or self.goes_on.get(digest, False)
        self._wiped = self._wiped or "wiping" in said
        if "restored" in said and not self._is_excused(said["damage"]):
            self._require_known(said["restored"], said["damage"])
            found.restored_alive += 1
        return True

    def check(self, model: LoadedModel, found: Kills) -> None:
        """Check database, messages, leases and caches.

        Raises:
            Broken: if anything was lost or changed.
        """
        with Database(self.paths.database) as database:
            (whole,) = database.rows("PRAGMA integrity_check")
            require(whole[0] == "ok", f"The database in {self.folder} is damaged: {whole[0]}")
            for message_id, content in self.messages.items():
                # A reply may have grown since the report, but not shrunk.
                message = database.message(message_id)
                kept = message.content if message.role == "user" else message.content[: len(content)]
                require(kept == content, f"Message {message_id} in {self.folder} lost what was committed")
            for conversation in database.conversations():
                require(database.leases.holder_pid(conversation.id) is None, "A dead process kept its lease")
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
        for path in [folder / MANIFEST, *branches.branch_manifests(folder)]:
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
                transcript=branches.read_tokens(folder, manifest),
            )
            problem = getattr(back, "reason", None) or getattr(back, "damage", None)
            if self._is_excused(problem):
                vault.remove(conversation_id)
                return
            require(isinstance(back, Restored), f"The cache in {path} could not be restored: {back}")
            assert isinstance(back, Restored)
            digest = continuation.digest_of(model, back.cache, back.tokens, manifest.scheme)
            plain = self._require_known(digest, back.damage)
            found.caches += 1
            if plain:
                self._read_again(model, back, digest, found)
            for one in back.checkpoints:
                cache = checkpoint.roll_back(
                    continuation.copy(back.cache), one, len(back.tokens) - one.tokens
                )
                self._require_known(
                    continuation.digest_of(model, cache, back.tokens[: one.tokens], manifest.scheme), None
                )
                found.checkpoints += 1

    def _is_excused(self, problem: str | None) -> bool:
        """Whether the files may be missing because the process was deleting them."""
        return self._wiped and problem is not None and "missing" in problem

    def _require_known(self, digest: str, damage: str | None) -> bool:
        require(damage is None, f"A cache in {self.folder} is damaged: {damage}")
        require(digest in self.goes_on, f"A cache in {self.folder} matches no saved cache")
        return self.goes_on[digest]

    def _read_again(self, model: LoadedModel, back: Restored, digest: str, found: Kills) -> None:
        steps = continuation.steps_from((self.folder / "steps" / digest).read_text())
        if len(steps) > MAX_STEPS:
            return
        cache = continuation.read_again(model, back.tokens, steps)
        again = continuation.digest_of(model, cache, back.tokens, "fp16")
        require(again == digest, f"A cache in {self.folder} differs from one that was read again")
        found.read_again += 1

    def _answer(self, model: LoadedModel, conversation_id: str, history: tuple[ChatMessage, ...]) -> None:
        vault = Vault(self.paths.caches)
        session = Session(model, vault.scheme(conversation_id) or "fp16")
        session.restore(vault, conversation_id, history)
        *_, done = session.send(history, Sampling(temperature=0.0, max_tokens=2))
        require(isinstance(done, Done), f"A conversation in {self.folder} cannot continue: {done}")


def endure(
    model: LoadedModel,
    ref: str,
    kills: int,
    folder: Path,
    seed: str = "kill",
    tell: Callable[[int], None] = lambda kill: None,
) -> Kills:
    """Kill chatting processes at random moments and check their folder after each kill.

    Args:
        model: The model, for the checks.
        ref: Reference of the same model, for the processes.
        folder: Parent of the data folders.
        tell: Called with the number of kills so far.

    Raises:
        Broken: at the first failed check.
    """
    chance, found = random.Random(seed), Kills()
    homes = [Home(folder / name) for name in ("one", "two")]
    following = homes[0].begin(ref, chance.randrange(1 << 30))
    try:
        for kill in range(kills):
            home, child = homes[kill % 2], following
            # The next process starts in the other home while this one runs and is checked.
            following = homes[(kill + 1) % 2].begin(ref, chance.randrange(1 << 30))
            assert child.stdout is not None
            for _ in range(chance.choice((1, 4, *(chance.randrange(2, 80) for _ in range(4))))):
                require(
                    home.hear(child.stdout.readline(), found), f"A process in {home.folder} ended by itself"
                )
            until = time.perf_counter() + chance.random() * 0.05
            while time.perf_counter() < until:
                pass
            child.kill()
            for line in child.stdout.read().splitlines(keepends=True):
                home.hear(line, found)
            require(child.wait() == -9, f"A process in {home.folder} ended by itself")
            child.stdout.close()
            home.check(model, found)
            found.kills = kill + 1
            mx.clear_cache()
            tell(found.kills)
    finally:
        following.kill()
        following.communicate()
    return found
