"""Leases of shown, queued and active conversations."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ui.controller.rig import Rig
from tqchat.store.lease import Lease, Leases, LeaseUnavailable
from tqchat.ui.controller.conversation.leases import ConversationLeases


def test_leases_that_are_not_in_use_are_released(tmp_path: Path) -> None:
    files = Leases(tmp_path / "tqchat.db")
    used = ["a"]
    leases = ConversationLeases(files, lambda: used)
    assert leases.acquire("a") is None and leases.acquire("b") is None
    assert leases.acquire("a") is None, "held already"
    leases.release_unused()
    assert files.holder_pid("a") is not None and files.holder_pid("b") is None
    leases.release_all()
    assert files.holder_pid("a") is None


def test_a_lease_held_elsewhere_is_reported(tmp_path: Path) -> None:
    files = Leases(tmp_path / "tqchat.db")
    with files.acquire("a"):
        message = ConversationLeases(files, list).acquire("a")
        assert message is not None and "another tqchat" in message


def test_without_file_locks_a_conversation_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Leases(tmp_path / "tqchat.db")

    def unavailable(conversation_id: str) -> Lease:
        raise LeaseUnavailable(tmp_path, OSError("no locks"))

    monkeypatch.setattr(files, "acquire", unavailable)
    assert ConversationLeases(files, list).acquire("a") is None


def test_a_conversation_keeps_its_lease_until_its_reply_ends(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    replying = rig.chat.shown.id
    assert replying is not None
    rig.chat.shown.new()
    assert rig.database.leases.holder_pid(replying) is not None
    rig.engine.reply("Hi.")
    assert rig.database.leases.holder_pid(replying) is None
