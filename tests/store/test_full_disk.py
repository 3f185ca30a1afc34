"""The database on a full disk: a file size limit fails a different write each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# One process for all limits: one process per limit would take minutes.
SCRIPT = """
import json, resource, shutil, sys
from pathlib import Path
from tqchat.store.database import Database, StoreFull

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def chat(database, kept, checkpoint):
    database._connection.execute(f"PRAGMA wal_autocheckpoint = {checkpoint}")
    conversation = database.create("t", None, "fp16")
    kept["title"] = "t"
    for n in range(6):
        question = database.add_message(conversation.id, "user", f"question{n} " + "x" * 3000)
        kept[question.id] = question.content
        reply = database.add_message(conversation.id, "assistant", "", "unfinished")
        kept[reply.id] = ""
        for m in range(3):
            content = f"reply{n} " + "y" * 2500 * m
            try:
                database.update_message(reply.id, content=content)
            except StoreFull:
                kept[reply.id] = [kept[reply.id], content]
                raise
            kept[reply.id] = content
        database.update_message(reply.id, status="complete", tokens=5)
        other = database.add_sibling(question.id, f"edit{n}")
        kept[other.id] = other.content
        database.select(question.id)
        database.rename(conversation.id, f"t{n}")
        kept["title"] = [f"t{n}"]

def check(path, kept):
    with Database(path) as database:
        rows = [row[0] for row in database._connection.execute("PRAGMA integrity_check")]
        assert rows == ["ok"], rows
        for message_id, content in kept.items():
            if message_id == "title":
                continue
            found = database.message(message_id).content
            assert found == content or found in content, (found[:20], str(content)[:20])
        for conversation in database.conversations():
            database.add_message(conversation.id, "user", "room again")
            assert database.messages(conversation.id)[-1].content == "room again"
            assert len(database.search("room again")) == 1

root, checkpoint = Path(sys.argv[1]), int(sys.argv[2])
refused = done = 0
size = 0
while not done:
    folder = root / str(size)
    kept = {}
    limit(size)
    try:
        with Database(folder / "tqchat.db") as database:
            chat(database, kept, checkpoint)
        done += 1
    except StoreFull:
        refused += 1
    finally:
        limit(resource.RLIM_INFINITY)
    check(folder / "tqchat.db", kept)
    shutil.rmtree(folder)
    size += 4096 + (size > 40000) * 5000
print(json.dumps({"refused": refused, "size": size}))
"""


@pytest.mark.parametrize("checkpoint", [1000, 3], ids=["wal", "wal and database"])
def test_a_full_disk_at_any_write_loses_no_committed_message(tmp_path: Path, checkpoint: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(checkpoint)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads(result.stdout)["refused"] > 15
