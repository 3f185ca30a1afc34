"""A process that writes conversations until it is killed: python -m tests.store.chatter DATABASE SEED.

After each commit it prints the committed message as a JSON line. Before it updates a reply it prints the new
content, because a kill may come between the commit and its line."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqchat.store.database import Database, Message, SamplingChoice


def report(kind: str, **facts: Any) -> None:
    print(json.dumps({"kind": kind, **facts}), flush=True)


def reported(message: Message) -> Message:
    report(
        "message",
        id=message.id,
        conversation=message.conversation_id,
        parent=message.parent_id,
        role=message.role,
        content=message.content,
        status=message.status,
    )
    return message


def grow(database: Database, reply: Message, rng: random.Random) -> None:
    """Write a reply as the app does: updates while it grows, then the final status."""
    content = reply.content
    for _ in range(rng.randrange(6)):
        content += " " + "".join(rng.choices("abcdefghij \n狐🦊", k=rng.choice((5, 50, 4000))))
        report("growing", id=reply.id, content=content)
        reported(database.update_message(reply.id, content=content, status="unfinished"))
    if rng.random() < 0.7:
        report("growing", id=reply.id, content=content)
        status = rng.choice(("complete", "stopped"))
        reported(database.update_message(reply.id, content=content, status=status, tokens=9))


def main(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with Database(path) as database:
        report("open")
        ids = [one.id for one in database.conversations()]

        def ask(conversation_id: str) -> None:
            reported(database.add_message(conversation_id, "user", f"word{rng.randrange(10**9)}x"))
            grow(
                database, reported(database.add_message(conversation_id, "assistant", "", "unfinished")), rng
            )

        def edit(message: Message) -> None:
            reported(database.add_sibling(message.id, f"{message.content} edited"))

        def regenerate(message: Message) -> None:
            if message.role == "assistant":
                grow(database, reported(database.add_sibling(message.id, "", "unfinished")), rng)

        def continue_reply(message: Message) -> None:
            if message.role == "assistant":
                report("growing", id=message.id, content=message.content)
                grow(database, reported(database.continue_reply(message.id)), rng)

        def branch(message: Message) -> None:
            database.rewind_to(message.conversation_id, message.id)
            ask(message.conversation_id)

        def select(message: Message) -> None:
            database.select(message.id)

        actions: list[Callable[[Message], None]] = [edit, regenerate, continue_reply, branch, select]
        while True:
            if not ids or (len(ids) < 8 and rng.random() < 0.1):
                conversation = database.create("Untitled", None, "turbo0v4")
                report("conversation", id=conversation.id)
                ids.append(conversation.id)
            conversation_id = rng.choice(ids)
            with database.leases.acquire(conversation_id):
                tree = database.tree(conversation_id)
                if not tree or rng.random() < 0.4:
                    ask(conversation_id)
                else:
                    rng.choice(actions)(rng.choice(tree))
                database.rename(conversation_id, f"Title {rng.randrange(1000)}", automatic=True)
                database.set_scheme(conversation_id, rng.choice(("fp16", "auto", "turbo4")))
                database.set_sampling(conversation_id, SamplingChoice(seed=rng.randrange(100)))
                database.set_draft(conversation_id, "draft " * rng.randrange(5))
                if rng.random() < 0.1:
                    database.delete(conversation_id)
                    database.undelete(conversation_id)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
