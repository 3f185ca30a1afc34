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
from tqchat.lab.endure.random_chat import paths_below
from tqchat.store.database import Database
from tqchat.store.vault import Restored, Vault, branches
from tqchat.store.vault.manifest import MANIFEST, read_manifest
from tqchat.ui.controller.texts.transcript import for_engine

MAX_STEPS = 250
"""Longest prefill, in forward passes, that is repeated for comparison: more would take too long."""

MAX_DELAY_S = 0.05
"""Longest random delay between a line of output and the kill."""


@dataclass
class KillCounts:
    """Counts of successful checks.

    Attributes:
        messages: Checks of committed messages.
        caches: Restored caches whose next logits equal those of the live one.
        checkpoints: The same for checkpoints.
        prefilled_again: FP16 caches equal, bit for bit, to a new prefill in the same steps.
        unfinished: Replies cut off by a kill and stored up to the last write.
        restored_by_chat: The same for caches that the next chatting process restored.
        scheme_changes: Changes of scheme that the processes asked for.
        branches: Edited messages and other branches that they went to.
    """

    kills: int = 0
    messages: int = 0
    caches: int = 0
    checkpoints: int = 0
    prefilled_again: int = 0
    unfinished: int = 0
    restored_by_chat: int = 0
    scheme_changes: int = 0
    branches: int = 0


class Home:
    """A data folder used by one process after another, and what they reported.

    Attributes:
        messages: Last reported content by message id.
        digests: Digests of saved caches; true if a new prefill can be compared with the cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.paths = folder, paths_below(folder)
        self.messages: dict[str, str] = {}
        self.digests: dict[str, bool] = {}
        self._checked: set[str] = set()
        self._wiped = False

    def begin(self, model: str, seed: int) -> subprocess.Popen[bytes]:
        """Start a chatting process in this folder."""
        command = [sys.executable, "-m", "tqchat.lab.endure.random_chat", str(self.folder), model, str(seed)]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    def process_line(self, line: bytes, counts: KillCounts) -> bool:
        """Process a line of the child's output; ``False`` if it is incomplete."""
        if not line.endswith(b"\n"):
            return False  # cut off by the kill
        said = json.loads(line)
        require("error" not in said, f"The chat in {self.folder} failed: {said.get('error')}")
        if "message" in said:
            self.messages[said["message"]] = said["content"]
        counts.scheme_changes += said.get("action") == "scheme change"
        counts.branches += said.get("action") == "branch"
        if "goes_on" in said:
            digest = said["goes_on"]
            self.digests[digest] = said["plain"] or self.digests.get(digest, False)
        self._wiped = self._wiped or "wiping" in said
        if "restored" in said and not self._is_excused(said["damage"]):
            self._require_known(said["restored"], said["damage"])
            counts.restored_by_chat += 1
        return True

    def check(self, model: LoadedModel, counts: KillCounts) -> None:
        """Check database, messages, leases and caches.

        Raises:
            CheckFailed: if anything was lost or changed.
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
                counts.unfinished += bool(said) and said[-1].status == "unfinished"
                self._check_caches(model, conversation.id, counts)
                history = for_engine(said)
                if history:
                    self._answer(model, conversation.id, history)
        self._wiped = False
        counts.messages += len(self.messages)

    def _check_caches(self, model: LoadedModel, conversation_id: str, counts: KillCounts) -> None:
        vault = Vault(self.paths.caches)
        folder = vault.folder / conversation_id
        for path in [folder / MANIFEST, *branches.branch_manifests(folder)]:
            if not path.exists():
                continue
            manifest = read_manifest(path)
            if manifest.rest.name in self._checked:
                continue
            self._checked.add(manifest.rest.name)
            restored = vault.load(
                conversation_id,
                fingerprint=model.info.fingerprint,
                scheme=manifest.scheme,
                transcript=branches.read_tokens(folder, manifest),
            )
            problem = getattr(restored, "reason", None) or getattr(restored, "damage", None)
            if self._is_excused(problem):
                vault.remove(conversation_id)
                return
            require(isinstance(restored, Restored), f"The cache in {path} could not be restored: {restored}")
            assert isinstance(restored, Restored)
            digest = continuation.digest_of(model, restored.cache, restored.tokens, manifest.scheme)
            plain = self._require_known(digest, restored.damage)
            counts.caches += 1
            if plain:
                self._compare_with_prefill(model, restored, digest, counts)
            for one in restored.checkpoints:
                cache = checkpoint.roll_back(
                    continuation.copy(restored.cache), one, len(restored.tokens) - one.tokens
                )
                self._require_known(
                    continuation.digest_of(model, cache, restored.tokens[: one.tokens], manifest.scheme), None
                )
                counts.checkpoints += 1

    def _is_excused(self, problem: str | None) -> bool:
        """Whether the files may be missing because the process was deleting them."""
        return self._wiped and problem is not None and "missing" in problem

    def _require_known(self, digest: str, damage: str | None) -> bool:
        require(damage is None, f"A cache in {self.folder} is damaged: {damage}")
        require(digest in self.digests, f"A cache in {self.folder} matches no saved cache")
        return self.digests[digest]

    def _compare_with_prefill(
        self, model: LoadedModel, restored: Restored, digest: str, counts: KillCounts
    ) -> None:
        steps = continuation.steps_from((self.folder / "steps" / digest).read_text())
        if len(steps) > MAX_STEPS:
            return
        cache = continuation.prefill_again(model, restored.tokens, steps)
        again = continuation.digest_of(model, cache, restored.tokens, "fp16")
        require(again == digest, f"A cache in {self.folder} differs from a new prefill")
        counts.prefilled_again += 1

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
) -> KillCounts:
    """Kill chatting processes at random moments and check their folder after each kill.

    Args:
        model: The model, for the checks.
        ref: Reference of the same model, for the processes.
        folder: Parent of the data folders.
        seed: Of the random moments and of the chats.
        tell: Called after each kill with the number of kills.

    Raises:
        CheckFailed: at the first failed check.
    """
    rng, counts = random.Random(seed), KillCounts()
    homes = [Home(folder / name) for name in ("one", "two")]
    next_child = homes[0].begin(ref, rng.randrange(1 << 30))
    try:
        for kill in range(kills):
            home, child = homes[kill % 2], next_child
            # The next process starts in the other home while this one runs and is checked.
            next_child = homes[(kill + 1) % 2].begin(ref, rng.randrange(1 << 30))
            assert child.stdout is not None
            for _ in range(rng.choice((1, 4, *(rng.randrange(2, 80) for _ in range(4))))):
                require(
                    home.process_line(child.stdout.readline(), counts),
                    f"A process in {home.folder} ended by itself",
                )
            until = time.perf_counter() + rng.random() * MAX_DELAY_S
            while time.perf_counter() < until:
                pass
            child.kill()
            for line in child.stdout.read().splitlines(keepends=True):
                home.process_line(line, counts)
            require(child.wait() == -9, f"A process in {home.folder} ended by itself")
            child.stdout.close()
            home.check(model, counts)
            counts.kills = kill + 1
            mx.clear_cache()
            tell(counts.kills)
    finally:
        next_child.kill()
        next_child.communicate()
    return counts
