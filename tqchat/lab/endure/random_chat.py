"""A process that chats at random until it is killed: python -m tqchat.lab.endure.random_chat HOME MODEL SEED.

Runs the application without its screen: controller, database, engine thread. Prints one JSON object per line:
committed messages, and before each save the digest of the live cache (``goes_on``: how a cache continues)."""

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
from tqchat.lab.endure import continuation
from tqchat.paths import Paths
from tqchat.store.database import Database, Message
from tqchat.store.vault import Restored, Vault
from tqchat.ui.controller.controller import Controller
from tqchat.ui.controller.records import Reply

SCHEMES = ("fp16", "fp16", "turbo0v4", "turbo2", "affine8")
CONVERSATIONS = 3
"""More are not begun; existing ones are reopened."""
RESTART_TOKENS = 900
"""Tokens after which a conversation is restarted from its first message."""
WORDS = ("dog", "sea", "the", "and", "Ada", "three", "red", "ran", "saw", "far")


def paths_below(home: Path) -> Paths:
    """The locations, all inside the folder ``home``."""
    return Paths(*(home / name for name in ("config", "state", "data", "cache", "logs")))


_print_lock = threading.Lock()


def tell(**facts: Any) -> None:
    """Print one JSON line; thread-safe."""
    line = f"{json.dumps(facts)}\n"
    with _print_lock:
        sys.stdout.write(line)
        sys.stdout.flush()


class SilentView:
    """A view that shows nothing and reports errors."""

    def conversations_changed(self) -> None: ...
    def transcript_changed(self) -> None: ...
    def message_added(self, message: Message) -> None: ...
    def reply_started(self, reply: Reply) -> None: ...
    def reply_grew(self, piece: events.TextDelta) -> None: ...
    def reply_finished(self, message: Message | None) -> None: ...
    def prompt_returned(self, text: str) -> None: ...
    def context_is_nearly_full(self) -> None: ...
    def context_is_full(self) -> None: ...
    def figures_changed(self) -> None: ...

    def say(self, text: str, severity: str = "information") -> None:
        if severity == "error":
            tell(error=text)


class RandomUser:
    """Performs random user actions and reports committed messages."""

    def __init__(
        self,
        database: Database,
        engine: Engine,
        heard: queue.Queue[events.Event],
        paths: Paths,
        rng: random.Random,
    ) -> None:
        self.database, self.engine, self.heard = database, engine, heard
        self.paths, self.rng = paths, rng
        self.chat = Controller(database, SilentView(), scheme="fp16")
        self.written = 0.0
        self.idle_polls = 0

    def run(self, model: str) -> None:
        self.chat.connect(self.engine, model)
        known = self.database.conversations()
        if known:
            self.chat.shown.open(self.rng.choice(known).id)
        tell(ready=True)
        while True:
            self._hear()
            chat = self.chat
            if chat.models.current is None:
                continue
            if chat.work.activity is None and not chat.work.waiting:
                self.idle_polls -= 1
                if self.idle_polls < 0:
                    self._act()
            elif chat.work.reply and chat.work.reply.text and self.rng.random() < 0.01:
                chat.turns.stop()
            elif self.rng.random() < 0.0005:
                # Deleting caches is safe at any time, also if the process is killed meanwhile.
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
                # 0: the next action comes before the save is done and interrupts it.
                self.idle_polls = self.rng.choice((0, 100, 100))
            case events.Saved() | events.SaveFailed():
                self.idle_polls = 0

    def _tell_all(self, conversation_id: str) -> None:
        for message in self.database.messages(conversation_id)[-2:]:
            tell(message=message.id, content=message.content)

    def _act(self) -> None:
        chat, rng = self.chat, self.rng
        chat.sampling.defaults = Sampling(temperature=0.0, max_tokens=rng.choice((2, 8, 30)))
        tokens = 0
        if chat.shown.conversation and (report := chat.caches.reports.get(chat.shown.conversation.id)):
            tokens = report.tokens
        user_messages = [one for one in chat.shown.messages if one.role == "user"]
        if tokens > RESTART_TOKENS and user_messages:
            chat.tree.fork_at(user_messages[0])
            self._send()
            return
        actions: list[tuple[float, Callable[[], Any]]] = [
            (10, self._send),
            (3, chat.turns.regenerate),
            (3, self._edit),
            (2, self._branch),
            (3, self._step),
            (2, chat.turns.continue_reply),
            (2, self._change_scheme),
            (3, self._switch),
        ]
        weights, what = zip(*actions, strict=True)
        rng.choices(what, weights)[0]()

    def _change_scheme(self) -> None:
        tell(action="scheme change")
        self.chat.schemes.set(self.rng.choice(SCHEMES), reread=self.rng.random() < 0.2)

    def _send(self) -> None:
        text = " ".join(self.rng.choices(WORDS, k=self.rng.choice((3, 40, 150))))
        if self.chat.turns.send(text):
            assert self.chat.shown.conversation is not None
            head = self.database.conversation(self.chat.shown.conversation.id).head_id
            tell(message=head, content=text)

    def _edit(self) -> None:
        user_messages = [one for one in self.chat.shown.messages if one.role == "user"]
        if user_messages and self.chat.tree.fork_at(self.rng.choice(user_messages)) is not None:
            tell(action="branch")
            self._send()

    def _branch(self) -> None:
        replies = [one for one in self.chat.shown.messages if one.role == "assistant"]
        if replies and self.chat.tree.fork_at(self.rng.choice(replies)) is not None:
            tell(action="branch")
            self._send()

    def _step(self) -> None:
        if (message := self.chat.tree.latest_with_versions()) is not None:
            tell(action="branch")
            self.chat.tree.step_version(message.id, self.rng.choice((-1, 1)))

    def _switch(self) -> None:
        known = self.database.conversations()
        if len(known) < CONVERSATIONS:
            self.chat.shown.new()
            self._send()
        else:
            self.chat.shown.open(self.rng.choice(known).id)


def report_caches(home: Path, rng: random.Random) -> None:
    """Wrap saving and restoring, to report the digest of every cache."""
    notes = home / "steps"
    notes.mkdir(parents=True, exist_ok=True)
    saving, adopting = Session.save, PromptCache.replace_with

    def save(
        self: Session, vault: Vault, conversation_id: str, interrupted: Callable[[], bool] = lambda: False
    ) -> int:
        held = self._cache
        held.settle(certain=True)
        digest = continuation.digest_of(self.model, held.cache, held.tokens, held.scheme)
        steps = continuation.steps_of(held.cache, len(held.tokens))
        plain = held.scheme == "fp16" and held.rounding == (16, 16) and steps is not None
        if plain:
            (notes / digest).write_text(json.dumps(steps))
        tell(conversation=conversation_id, goes_on=digest, plain=plain)
        for one in held.checkpoints:
            cache = checkpoint.roll_back(continuation.copy(held.cache), one, len(held.tokens) - one.tokens)
            tokens = held.tokens[: one.tokens]
            tell(
                conversation=conversation_id,
                goes_on=continuation.digest_of(self.model, cache, tokens, held.scheme),
                plain=False,
            )
        asked = iter(range(10**6))
        max_checks = rng.choice((10**6, 10**6, rng.randrange(8)))
        size = saving(self, vault, conversation_id, lambda: next(asked) >= max_checks or interrupted())
        tell(saved=conversation_id)
        return size

    def adopt(self: PromptCache, found: Restored) -> str | None:
        reason = adopting(self, found)
        if reason is None:
            digest = continuation.digest_of(self.model, self.cache, self.tokens, self.scheme)
            tell(restored=digest, damage=found.damage)
            if (notes / digest).exists():
                continuation.attach_steps(
                    self.cache, [tuple(step) for step in json.loads((notes / digest).read_text())]
                )
        return reason

    Session.save, PromptCache.replace_with = save, adopt  # type: ignore[method-assign]


def main(home: Path, folder: str, seed: int) -> None:
    """Chat until killed."""
    rng = random.Random(seed)
    paths = paths_below(home)
    paths.ensure()
    report_caches(home, random.Random(seed + 1))
    loading = models.load_folder

    def load_folder(*arguments: Any, **others: Any) -> Any:
        model = loading(*arguments, **others)
        continuation.record_steps(model)
        return model

    models.load_folder = load_folder
    heard: queue.Queue[events.Event] = queue.Queue()
    engine = Engine(heard.put, paths=paths)
    engine.start()
    with Database(paths.database) as database:
        RandomUser(database, engine, heard, paths, rng).run(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
