"""A process that really chats until it is killed: python -m tests.store.vault_chatter HOME MODEL SEED.

It answers with a real (tiny) model, saves as the application does, changes schemes, goes back and branches.
One JSON object to a line says what has been committed, and before each save how the live cache goes on."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqchat.engine import backend
from tqchat.engine.commands import ChatMessage, Sampling
from tqchat.engine.events import Done, SchemeChanged
from tqchat.paths import Paths
from tqchat.store.database import Database
from tqchat.store.vault import Vault

SCHEMES = ("fp16", "turbo0v4", "turbo2", "affine8")
WORDS = ("dog", "sea", "the", "and", "Ada", "three", "red", "ran", "saw", "far")


def places(home: Path) -> Paths:
    return Paths(*(home / name for name in ("config", "state", "data", "cache", "logs")))


def transcript(database: Database, conversation_id: str) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage(m.role, m.content) for m in database.messages(conversation_id))


def going_on(model: Any, cache: list[Any], tokens: Sequence[int], scheme: str) -> str:
    """What a cache holds and how it would go on, to the last bit. The cache is used up."""
    import mlx.core as mx

    logits = [model.model(mx.array([[token]]), cache=cache) for token in (5, 77, 901)]
    mx.eval(logits)
    digest = hashlib.sha256(repr((list(tokens), scheme)).encode())
    for one in logits:
        digest.update(bytes(memoryview(one.astype(mx.float32).reshape(-1).view(mx.uint8))))
    return digest.hexdigest()


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def main(home: Path, folder: str, seed: int) -> None:
    backend.prepare()
    from tqchat.engine import models
    from tqchat.engine.session import Session

    chance = random.Random(seed)
    paths = places(home)
    paths.ensure()
    model, vault = models.load(folder), Vault(paths.caches)
    sessions: dict[str, Session] = {}

    def save(session: Session, conversation_id: str) -> None:
        cache = [copy.deepcopy(layer) for layer in session._held.cache]
        tell(
            conversation=conversation_id,
            goes_on=going_on(model, cache, session.tokens, session.scheme),
            plain=session.scheme == "fp16" and session._held.rounding == (16, 16),
        )
        asked = iter(range(10**6))
        patience = chance.choice((10**6, 10**6, chance.randrange(8)))
        session.save(vault, conversation_id, lambda: next(asked) >= patience)
        tell(saved=conversation_id)

    with Database(paths.database) as database:
        ids = [one.id for one in database.conversations()]
        while len(ids) < 2:
            ids.append(database.create("Untitled", None, ("fp16", "turbo2")[len(ids)]).id)
        tell(ready=True)
        while True:
            conversation_id = chance.choice(ids)
            said = database.messages(conversation_id)
            if said and chance.random() < 0.3:
                database.rewind_to(conversation_id, chance.choice([None, *(m.id for m in said)]))
            history = transcript(database, conversation_id)
            if conversation_id not in sessions or chance.random() < 0.2:
                session = Session(model, database.conversation(conversation_id).scheme)
                session.restore(vault, conversation_id, history)
                sessions[conversation_id] = session
            session = sessions[conversation_id]
            if not history or history[-1].role == "assistant":
                text = " ".join(chance.choices(WORDS, k=chance.choice((3, 40, 150))))
                message = database.add_message(conversation_id, "user", text)
                tell(message=message.id, content=text)
            sampling = Sampling(temperature=0.0, max_tokens=chance.choice((2, 8, 30)))
            *_, done = session.send(transcript(database, conversation_id), sampling)
            assert isinstance(done, Done), done
            reply = database.add_message(conversation_id, "assistant", done.text)
            tell(message=reply.id, content=done.text)
            save(session, conversation_id)
            if chance.random() < 0.15:
                scheme = chance.choice(SCHEMES)
                database.set_scheme(conversation_id, scheme)
                *_, changed = session.set_scheme(scheme)
                assert isinstance(changed, SchemeChanged), changed
                save(session, conversation_id)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
