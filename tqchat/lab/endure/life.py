"""A person and their chat, until the process is killed: python -m tqchat.lab.endure.life HOME MODEL SEED.

All of the application but the screen: its controller, its database, its engine's thread. One JSON object to a
line tells what is on disk for certain, and before each save how the live cache goes on."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import json
import queue
import random
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqchat.engine import events, models
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import Sampling
from tqchat.engine.session import Session
from tqchat.engine.worker import Engine
from tqchat.kv import checkpoint
from tqchat.lab.endure import witness
from tqchat.paths import Paths
from tqchat.store.database import Database, Message
from tqchat.store.vault import Restored, Vault
from tqchat.ui.controller.controller import Controller
from tqchat.ui.controller.records import Reply

SCHEMES = ("fp16", "fp16", "turbo0v4", "turbo2", "affine8")
CONVERSATIONS = 3
LONG = 900
"""Tokens after which a conversation is taken up again near its beginning."""
WORDS = ("dog", "sea", "the", "and", "Ada", "three", "red", "ran", "saw", "far")


def places(home: Path) -> Paths:
    """Where such a process keeps everything."""
    return Paths(*(home / name for name in ("config", "state", "data", "cache", "logs")))


_telling = threading.Lock()


def tell(**facts: Any) -> None:
    """One line, whole, whichever thread it comes from."""
    line = f"{json.dumps(facts)}\n"
    with _telling:
        sys.stdout.write(line)
        sys.stdout.flush()


class Nobody:
    """A view that nobody looks at."""

    def conversations_changed(self) -> None: ...
    def transcript_changed(self) -> None: ...
    def message_added(self, message: Message) -> None: ...
    def reply_started(self, reply: Reply) -> None: ...
    def reply_grew(self, text: str) -> None: ...
    def reply_finished(self, message: Message | None) -> None: ...
    def prompt_returned(self, text: str) -> None: ...
    def context_is_nearly_full(self) -> None: ...
    def context_is_full(self) -> None: ...
    def figures_changed(self) -> None: ...

    def say(self, text: str, severity: str = "information") -> None:
        if severity == "error":
            tell(error=text)


class Life:
    """What the person does, by chance, and what is told of it."""

    def __init__(
        self,
        database: Database,
        engine: Engine,
        heard: queue.Queue[events.Event],
        paths: Paths,
        chance: random.Random,
    ) -> None:
        self.database, self.engine, self.heard = database, engine, heard
        self.paths, self.chance = paths, chance
        self.chat = Controller(database, Nobody(), scheme="fp16")
        self.written = 0.0
        self.patience = 0

    def live(self, model: str) -> None:
        self.chat.connect(self.engine, model)
        known = self.database.conversations()
        if known:
            self.chat.shown.open(self.chance.choice(known).id)
        tell(ready=True)
        while True:
            self._hear()
            chat = self.chat
            if chat.models.current is None:
                continue
            if chat.work.activity is None and not chat.work.waiting:
                self.patience -= 1
                if self.patience < 0:
                    self._act()
            elif chat.work.reply and chat.work.reply.text and self.chance.random() < 0.01:
                chat.turns.stop()
            elif self.chance.random() < 0.0005:
                # Deleting the caches is safe at any time, also for a kill in the midst of it.
                tell(wiping=True)
                shutil.rmtree(self.paths.caches, ignore_errors=True)

    def _hear(self) -> None:
        try:
            event = self.heard.get(timeout=0.01)
        except queue.Empty:
            return
        self.chat.handle(event)
        reply = self.chat.work.reply
        if reply and reply.message_id and reply.written_at != self.written:
            self.written = reply.written_at
            tell(message=reply.message_id, content=self.database.message(reply.message_id).content)
        match event:
            case events.Done():
                self._tell_all(event.conversation_id)
                # Often the person is quicker than the save, and it gives way.
                self.patience = self.chance.choice((0, 100, 100))
            case events.Saved() | events.SaveFailed():
                self.patience = 0

    def _tell_all(self, conversation_id: str) -> None:
        for message in self.database.messages(conversation_id)[-2:]:
            tell(message=message.id, content=message.content)

    def _act(self) -> None:
        chat, chance = self.chat, self.chance
        chat.sampling.defaults = Sampling(temperature=0.0, max_tokens=chance.choice((2, 8, 30)))
        tokens = 0
        if chat.shown.conversation and (report := chat.caches.reports.get(chat.shown.conversation.id)):
            tokens = report.tokens
        spoken = [one for one in chat.shown.messages if one.role == "user"]
        if tokens > LONG and spoken:
            chat.tree.fork_at(spoken[0])
            self._send()
            return
        deeds: list[tuple[float, Callable[[], Any]]] = [
            (10, self._send),
            (3, chat.turns.regenerate),
            (3, self._edit),
            (2, self._branch),
            (3, self._step),
            (2, chat.turns.continue_reply),
            (2, lambda: chat.schemes.set(chance.choice(SCHEMES), reread=chance.random() < 0.2)),
            (3, self._another),
        ]
        weights, what = zip(*deeds, strict=True)
        chance.choices(what, weights)[0]()

    def _send(self) -> None:
        text = " ".join(self.chance.choices(WORDS, k=self.chance.choice((3, 40, 150))))
        if self.chat.turns.send(text):
            assert self.chat.shown.conversation is not None
            head = self.database.conversation(self.chat.shown.conversation.id).head_id
            tell(message=head, content=text)

    def _edit(self) -> None:
        spoken = [one for one in self.chat.shown.messages if one.role == "user"]
        if spoken and self.chat.tree.fork_at(self.chance.choice(spoken)) is not None:
            self._send()

    def _branch(self) -> None:
        replies = [one for one in self.chat.shown.messages if one.role == "assistant"]
        if replies and self.chat.tree.fork_at(self.chance.choice(replies)) is not None:
            self._send()

    def _step(self) -> None:
        if (message := self.chat.tree.latest_with_versions()) is not None:
            self.chat.tree.step_version(message.id, self.chance.choice((-1, 1)))

    def _another(self) -> None:
        known = self.database.conversations()
        if len(known) < CONVERSATIONS:
            self.chat.shown.new()
            self._send()
        else:
            self.chat.shown.open(self.chance.choice(known).id)


def watch(home: Path, chance: random.Random) -> None:
    """Have every save told before it is made, and every cache that comes back recognised."""
    notes = home / "steps"
    notes.mkdir(parents=True, exist_ok=True)
    saving, adopting = Session.save, PromptCache.replace_with

    def save(
        self: Session, vault: Vault, conversation_id: str, interrupted: Callable[[], bool] = lambda: False
    ) -> int:
        held = self._held
        held.settle(certain=True)
        digest = witness.going_on(self.model, held.cache, held.tokens, held.scheme)
        steps = witness.steps_of(held.cache, len(held.tokens))
        plain = held.scheme == "fp16" and held.rounding == (16, 16) and steps is not None
        if plain:
            (notes / digest).write_text(json.dumps(steps))
        tell(conversation=conversation_id, goes_on=digest, plain=plain)
        for one in held.checkpoints:
            cache = checkpoint.go_back(witness.copy(held.cache), one, len(held.tokens) - one.tokens)
            tokens = held.tokens[: one.tokens]
            tell(
                conversation=conversation_id,
                goes_on=witness.going_on(self.model, cache, tokens, held.scheme),
                plain=False,
            )
        asked = iter(range(10**6))
        patience = chance.choice((10**6, 10**6, chance.randrange(8)))
        size = saving(self, vault, conversation_id, lambda: next(asked) >= patience or interrupted())
        tell(saved=conversation_id)
        return size

    def adopt(self: PromptCache, found: Restored) -> str | None:
        reason = adopting(self, found)
        if reason is None:
            digest = witness.going_on(self.model, self.cache, self.tokens, self.scheme)
            tell(restored=digest, damage=found.damage)
            if (notes / digest).exists():
                witness.remember(
                    self.cache, [tuple(step) for step in json.loads((notes / digest).read_text())]
                )
        return reason

    Session.save, PromptCache.replace_with = save, adopt  # type: ignore[method-assign]


def main(home: Path, folder: str, seed: int) -> None:
    """Live until killed."""
    chance = random.Random(seed)
    paths = places(home)
    paths.ensure()
    watch(home, random.Random(seed + 1))
    loading = models.load_folder

    def load_folder(*arguments: Any, **others: Any) -> Any:
        model = loading(*arguments, **others)
        witness.record_steps(model)
        return model

    models.load_folder = load_folder
    heard: queue.Queue[events.Event] = queue.Queue()
    engine = Engine(heard.put, paths=paths)
    engine.start()
    with Database(paths.database) as database:
        Life(database, engine, heard, paths, chance).live(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
