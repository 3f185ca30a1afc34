"""A process that chats until it is killed: python -m tests.store.chatter DATABASE SEED.

After each commit it says what is now on disk, one JSON object to a line. Before a reply grows it says how:
a kill may fall between the commit and the line that tells of it."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqchat.store.database import Database, Message, SamplingChoice


def tell(kind: str, **facts: Any) -> None:
    print(json.dumps({"kind": kind, **facts}), flush=True)


def told(message: Message) -> Message:
    tell(
        "message",
        id=message.id,
        conversation=message.conversation_id,
        parent=message.parent_id,
        role=message.role,
        content=message.content,
        status=message.status,
    )
    return message


def grow(database: Database, reply: Message, chance: random.Random) -> None:
    """As the app writes a reply: a little more each time, and how it went at the end."""
    content = reply.content
    for _ in range(chance.randrange(6)):
        content += " " + "".join(chance.choices("abcdefghij \n狐🦊", k=chance.choice((5, 50, 4000))))
        tell("growing", id=reply.id, content=content)
        told(database.update_message(reply.id, content=content, status="unfinished"))
    if chance.random() < 0.7:
        tell("growing", id=reply.id, content=content)
        status = chance.choice(("complete", "stopped"))
        told(database.update_message(reply.id, content=content, status=status, tokens=9))


def main(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with Database(path) as database:
        tell("open")
        ids = [one.id for one in database.conversations()]

        def begin(conversation_id: str) -> None:
            told(database.add_message(conversation_id, "user", f"word{chance.randrange(10**9)}x"))
            grow(database, told(database.add_message(conversation_id, "assistant", "", "unfinished")), chance)

        def edit(message: Message) -> None:
            told(database.add_sibling(message.id, f"{message.content} edited"))

        def regenerate(message: Message) -> None:
            if message.role == "assistant":
                grow(database, told(database.add_sibling(message.id, "", "unfinished")), chance)

        def go_on(message: Message) -> None:
            if message.role == "assistant":
                tell("growing", id=message.id, content=message.content)
                grow(database, told(database.continue_reply(message.id)), chance)

        def branch(message: Message) -> None:
            database.rewind_to(message.conversation_id, message.id)
            begin(message.conversation_id)

        def choose(message: Message) -> None:
            database.select(message.id)

        actions: list[Callable[[Message], None]] = [edit, regenerate, go_on, branch, choose]
        while True:
            if not ids or (len(ids) < 8 and chance.random() < 0.1):
                conversation = database.create("Untitled", None, "turbo0v4")
                tell("conversation", id=conversation.id)
                ids.append(conversation.id)
            conversation_id = chance.choice(ids)
            with database.leases.acquire(conversation_id):
                tree = database.tree(conversation_id)
                if not tree or chance.random() < 0.4:
                    begin(conversation_id)
                else:
                    chance.choice(actions)(chance.choice(tree))
                database.rename(conversation_id, f"Title {chance.randrange(1000)}", automatic=True)
                database.set_scheme(conversation_id, chance.choice(("fp16", "auto", "turbo4")))
                database.set_sampling(conversation_id, SamplingChoice(seed=chance.randrange(100)))
                database.set_draft(conversation_id, "draft " * chance.randrange(5))
                if chance.random() < 0.1:
                    database.delete(conversation_id)
                    database.undelete(conversation_id)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
