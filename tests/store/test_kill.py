"""Kills processes while they write. ``TQCHAT_KILLS=300`` kills more."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.store.test_search import check_index
from tqchat.paths import Paths
from tqchat.store.database import Database, Message

KILLS = int(os.environ.get("TQCHAT_KILLS", "30"))
ROOT = Path(__file__).parents[2]


class Witness:
    """Everything that any process reported as committed."""

    def __init__(self) -> None:
        self.conversations: set[str] = set()
        self.messages: dict[str, dict[str, Any]] = {}
        self.announced: dict[str, str] = {}

    def record(self, line: bytes) -> None:
        if not line.endswith(b"\n"):
            return  # cut off by the kill
        event = json.loads(line)
        match event["kind"]:
            case "conversation":
                self.conversations.add(event["id"])
            case "message":
                self.messages[event["id"]] = event
                self.announced.pop(event["id"], None)
            case "growing":
                self.announced[event["id"]] = event["content"]

    def check(self, database: Database) -> None:
        connection = database._connection
        assert [row[0] for row in connection.execute("PRAGMA integrity_check")] == ["ok"]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        check_index(database)
        # The child deletes and undeletes; a kill in between leaves the conversation deleted.
        for one in database.deleted():
            database.undelete(one.id)
        here = {one.id for one in database.conversations()}
        assert self.conversations <= here
        found: dict[str, Message] = {}
        for conversation_id in here:
            found |= self.checked_messages(database, conversation_id)
        for message_id, expected in self.messages.items():
            message = found[message_id]
            assert (message.conversation_id, message.parent_id, message.role) == (
                expected["conversation"],
                expected["parent"],
                expected["role"],
            )
            if (announced := self.announced.get(message_id)) is None:
                assert (message.content, message.status) == (expected["content"], expected["status"])
            else:
                # The kill interrupted this write: it must be complete or absent.
                assert message.content in (expected["content"], announced)
        for message in found.values():
            self.messages[message.id] = {
                "conversation": message.conversation_id,
                "parent": message.parent_id,
                "role": message.role,
                "content": message.content,
                "status": message.status,
            }
        self.announced.clear()

    @staticmethod
    def checked_messages(database: Database, conversation_id: str) -> dict[str, Message]:
        """Check that a conversation's messages form a tree; returns them by id."""
        conversation, tree = database.conversation(conversation_id), database.tree(conversation_id)
        seen: set[str | None] = {None}
        for message in tree:
            assert message.parent_id in seen, "a message stands before its parent"
            seen.add(message.id)
        assert conversation.head_id in seen
        shown = database.messages(conversation_id)
        assert [m.parent_id for m in shown] == [None, *(m.id for m in shown)][: len(shown)]
        assert (shown[-1].id if shown else None) == conversation.head_id
        assert set(database.version_positions(conversation_id)) == {m.id for m in shown}
        return {message.id: message for message in tree}


def test_a_kill_at_any_time_loses_no_committed_message(paths: Paths) -> None:
    rng = random.Random(os.environ.get("TQCHAT_SEED", "kill"))
    witness, unfinished = Witness(), 0
    for kill in range(KILLS):
        command = [sys.executable, "-m", "tests.store.chatter", str(paths.database), str(kill)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        assert child.stdout is not None
        # Before it opens the database, early, or in the middle; then up to 10 ms later, between two lines.
        for _ in range(rng.choice((0, 3, rng.randrange(60), rng.randrange(250)))):
            witness.record(child.stdout.readline())
        until = time.perf_counter() + rng.random() * 0.01
        while time.perf_counter() < until:
            pass
        child.kill()
        for line in child.stdout.read().splitlines(keepends=True):
            witness.record(line)
        assert child.wait() == -9
        child.stdout.close()
        with Database(paths.database) as database:
            witness.check(database)
            unfinished += any(m["status"] == "unfinished" for m in witness.messages.values())
            for conversation_id in witness.conversations:
                assert database.leases.holder_pid(conversation_id) is None
    assert len(witness.messages) > 3 * KILLS and unfinished


def test_a_killed_reply_is_unfinished_and_can_be_continued(paths: Paths) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from tqchat.store.database import Database
database = Database(Path(sys.argv[1]))
conversation = database.create("t", None, "fp16")
database.leases.acquire(conversation.id)
database.add_message(conversation.id, "user", "Tell me a story.")
reply = database.add_message(conversation.id, "assistant", "", "unfinished")
for content in ("Once", "Once upon"):
    database.update_message(reply.id, content=content)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code, str(paths.database)], timeout=60).returncode == -9
    with Database(paths.database) as database:
        (conversation,) = database.conversations()
        cut = database.messages(conversation.id)[-1]
        assert (cut.content, cut.status) == ("Once upon", "unfinished")
        assert len(database.search("once upon")) == 1
        with database.leases.acquire(conversation.id):
            reply = database.continue_reply(cut.id)
            database.update_message(reply.id, content=f"{reply.content} a time.", status="complete")
        assert [(m.content, m.status) for m in database.messages(conversation.id)] == [
            ("Tell me a story.", "complete"),
            ("Once upon a time.", "complete"),
        ]
        assert len(database.search("upon a time")) == 1
