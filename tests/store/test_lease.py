from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tqchat.paths import Paths
from tqchat.store.database import ConversationInUse, Database, StoreError, StoreFull
from tqchat.store.lease import Leases, LeaseUnavailable

HOLD_LEASE = """
import sys
from pathlib import Path
from tqchat.store.lease import Leases
lease = Leases(Path(sys.argv[1])).acquire(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
lease.release()
"""


@contextmanager
def lease_held_elsewhere(database: Path, conversation_id: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a conversation's lease until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_LEASE, str(database), conversation_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_conversation_in_use_can_be_read_but_not_written(paths: Paths) -> None:
    with Database(paths.database) as database:
        used, free = database.create("used", None, "fp16"), database.create("free", None, "fp16")
        message = database.add_message(used.id, "user", "q")
        reply = database.add_message(used.id, "assistant", "a")
        with lease_held_elsewhere(paths.database, used.id) as other:
            assert database.leases.holder_pid(used.id) == other.pid
            assert database.leases.holder_pid(free.id) is None
            before = database.conversation(used.id), database.tree(used.id)
            for write in (
                lambda: database.leases.acquire(used.id),
                lambda: database.add_message(used.id, "user", "x"),
                lambda: database.add_sibling(message.id, "x"),
                lambda: database.update_message(message.id, content="x"),
                lambda: database.continue_reply(reply.id),
                lambda: database.rewind_to(used.id, None),
                lambda: database.select(message.id),
                lambda: database.rename(used.id, "x"),
                lambda: database.set_scheme(used.id, "affine4"),
                lambda: database.set_model(used.id, "x"),
                lambda: database.set_draft(used.id, "x"),
                lambda: database.set_system_prompt(used.id, "x"),
                lambda: database.delete(used.id),
            ):
                with pytest.raises(
                    ConversationInUse, match=rf"another tqchat \(process {other.pid}\)"
                ) as raised:
                    write()
                assert raised.value.pid == other.pid
            assert (database.conversation(used.id), database.tree(used.id)) == before
            database.add_message(free.id, "user", "x")
            other.communicate("")
        assert database.leases.holder_pid(used.id) is None
        database.add_message(used.id, "user", "x")


def test_a_killed_process_loses_its_lease(paths: Paths) -> None:
    leases = Leases(paths.database)
    with lease_held_elsewhere(paths.database, "talk") as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert leases.holder_pid("talk") is None
        leases.check("talk")
        with leases.acquire("talk"):
            assert leases.holder_pid("talk") == os.getpid()


def test_a_child_process_does_not_inherit_the_lease(paths: Paths) -> None:
    leases = Leases(paths.database)
    lease = leases.acquire("talk")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        lease.release()
        leases.acquire("talk").release()
    finally:
        child.kill()
        child.communicate()


def test_the_holder_can_write_and_release(paths: Paths) -> None:
    with Database(paths.database) as here, Database(paths.database) as there:
        conversation = here.create("t", None, "fp16")
        lease = here.leases.acquire(conversation.id)
        here.add_message(conversation.id, "user", "mine")
        # Another connection of this process may write, but a second lease is refused.
        there.add_message(conversation.id, "user", "mine too")
        with pytest.raises(ConversationInUse):
            there.leases.acquire(conversation.id)
        (file,) = here.leases.folder.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(here.leases.folder.stat().st_mode) == 0o700
        assert file.read_text() == f"{os.getpid()}\n"
        lease.release()
        lease.release()
        assert list(here.leases.folder.iterdir()) == []
        with there.leases.acquire(conversation.id), pytest.raises(ConversationInUse):
            here.leases.acquire(conversation.id)


COMPETE_FOR_LEASE = """
import sys
from pathlib import Path
from tqchat.store.errors import ConversationInUse
from tqchat.store.lease import Leases
leases, counter = Leases(Path(sys.argv[1])), Path(sys.argv[2])
done = 0
while done < 100:
    leases.holder_pid("talk")
    try:
        with leases.acquire("talk"):
            counter.write_text(str(int(counter.read_text()) + 1))
            done += 1
    except ConversationInUse:
        pass
"""


def test_a_lease_is_mutually_exclusive(paths: Paths, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COMPETE_FOR_LEASE, str(paths.database), str(counter)]
    children = [subprocess.Popen(command) for _ in range(3)]
    assert [child.wait(timeout=120) for child in children] == [0, 0, 0]
    assert counter.read_text() == "300"


def test_ids_with_path_characters_are_refused(paths: Paths) -> None:
    for bad in ("../x", "", "a/b", ".", "a\0b"):
        with pytest.raises(StoreError):
            Leases(paths.database).acquire(bad)


def test_a_leases_folder_that_cannot_be_used_is_reported(paths: Paths) -> None:
    leases = Leases(paths.database)
    leases.folder.parent.mkdir(parents=True, exist_ok=True)
    leases.folder.write_text("a file instead of a folder")
    with pytest.raises(LeaseUnavailable, match=r"cannot be locked in .*leases"):
        leases.acquire("a")


def test_a_full_disk_is_reported_when_the_leases_folder_is_created(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    leases = Leases(paths.database)
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StoreFull):
        leases.acquire("a")
