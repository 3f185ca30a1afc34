"""A conversation's adapter, and the local time at which it began."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tqchat.paths import Paths
from tqchat.store.database import Database
from tqchat.store.exchange import from_json, to_json
from tqchat.store.imports.json_stream import BadImport
from tqchat.store.records import NO_ADAPTER


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The machine's time zone; set ``TZ`` and call ``time.tzset``."""
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


def move_to(zone: pytest.MonkeyPatch, place: str) -> None:
    zone.setenv("TZ", place)
    time.tzset()


def test_an_adapter_is_kept_exported_and_imported(paths: Paths) -> None:
    with Database(paths.database) as database:
        conversation = database.create("", None, "fp16", adapter="/adapters/pirate")
        plain = database.create("", None, "fp16")
        assert (conversation.adapter, plain.adapter) == ("/adapters/pirate", None)
        database.set_adapter(plain.id, NO_ADAPTER)
        exported = "".join(to_json(database, database.conversations())).encode()
        for one in (conversation, plain):
            database.delete(one.id)
        database.purge(9e12)
        from_json(database, exported)
        assert database.conversation(conversation.id).adapter == "/adapters/pirate"
        assert database.conversation(plain.id).adapter == NO_ADAPTER
        database.set_adapter(plain.id, None)
        assert database.conversation(plain.id).adapter is None


def test_a_conversation_keeps_the_local_time_at_which_it_began(
    paths: Paths, zone: pytest.MonkeyPatch
) -> None:
    with Database(paths.database) as database:
        for place, offset in (("XXX-9", 9 * 3600), ("XXX+3:30", -12_600), ("UTC0", 0)):
            move_to(zone, place)
            conversation = database.create("", None, "fp16")
            assert conversation.utc_offset == offset
            assert conversation.began == conversation.created_at + offset
            move_to(zone, "XXX-5")
            assert database.conversation(conversation.id).began == conversation.began
            exported = "".join(to_json(database, [conversation])).encode()
            database.delete(conversation.id)
            database.purge(9e12)
            from_json(database, exported)
            assert database.conversation(conversation.id).began == conversation.began


def test_older_exports_have_neither(paths: Paths) -> None:
    with Database(paths.database) as database:
        conversation = database.create("", None, "fp16")
        exported = json.loads("".join(to_json(database, [conversation])))
        exported["version"] = 3
        for name in ("adapter", "utc_offset"):
            del exported["conversations"][0][name]
        database.delete(conversation.id)
        database.purge(9e12)
        from_json(database, json.dumps(exported).encode())
        again = database.conversation(conversation.id)
        assert (again.adapter, again.utc_offset, again.began) == (None, None, again.created_at)


@pytest.mark.parametrize(
    ("name", "value"), [("adapter", 5), ("adapter", "x" * 5_000), ("utc_offset", 1.5), ("utc_offset", 10**6)]
)
def test_wrong_values_are_refused(paths: Paths, name: str, value: object) -> None:
    with Database(paths.database) as database:
        exported = json.loads("".join(to_json(database, [database.create("", None, "fp16")])))
        exported["conversations"][0][name] = value
        with pytest.raises(BadImport, match=name):
            from_json(database, json.dumps(exported).encode())
