from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.store.test_migrations import KEPT_WITH_MARKS
from tqchat.paths import Paths
from tqchat.store import import_parser
from tqchat.store.database import Database, SamplingChoice, StoreFull
from tqchat.store.exchange import from_json, to_json, to_markdown
from tqchat.store.imports import json_stream
from tqchat.store.imports.json_stream import BadImport

LETTERS = "abc XYZ\n\täß中文🦊'\"\\%_*`#\x00\x1b\x9b\u2028\u202e\ufeff{}[]"


@pytest.fixture
def database(paths: Paths) -> Iterator[Database]:
    with Database(paths.database) as opened:
        yield opened


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "other" / "tqchat.db") as opened:
        yield opened


def exported(database: Database) -> bytes:
    return "".join(to_json(database, database.conversations())).encode()


def all_records(database: Database) -> list[Any]:
    return [(one, database.tree(one.id)) for one in database.conversations()]


def fill(database: Database, seed: int) -> None:
    """Add conversations that use every field."""
    rng = random.Random(seed)

    def text(longest: int = 80) -> str:
        return "".join(rng.choices(LETTERS, k=rng.randint(0, longest)))

    def maybe(value: Any) -> Any:
        return rng.choice((None, value))

    for _ in range(rng.randint(1, 4)):
        scheme = rng.choice(("fp16", "auto", "turbo4v2", "affine8"))
        one = database.create(text(), maybe(text()), scheme, system_prompt=maybe(text()))
        if rng.random() < 0.5:
            database.rename(one.id, text())
        choice = SamplingChoice(
            temperature=maybe(rng.random() * 5),
            top_k=maybe(rng.randrange(10**6)),
            seed=maybe(rng.randrange(2**63)),
        )
        database.set_sampling(one.id, choice)
        database.set_draft(one.id, text())
        ids: list[str] = []
        for _ in range(rng.randrange(12)):
            if ids and rng.random() < 0.4:
                database.rewind_to(one.id, rng.choice((None, *ids)))
            message = database.add_message(
                one.id,
                rng.choice(("system", "user", "assistant")),
                text(400),
                rng.choice(("complete", "unfinished", "stopped")),
                tokens=maybe(rng.randrange(2**53)),
                prompt_tokens=maybe(rng.randrange(10**6)),
                tokens_per_second=maybe(rng.random() * 10 ** rng.randint(-5, 300)),
                first_token_seconds=maybe(rng.random()),
                drafted=maybe(rng.randrange(10**4)),
                accepted=maybe(rng.randrange(10**4)),
                cache_bytes=maybe(rng.randrange(2**53)),
                fp16_bytes=maybe(rng.randrange(2**53)),
                scheme=maybe("turbo0v4"),
                model=maybe(text()),
            )
            ids.append(message.id)
        if ids and rng.random() < 0.3:
            database.rewind_to(one.id, rng.choice((None, *ids)))


@pytest.mark.parametrize("seed", range(40))
def test_an_import_equals_the_export(database: Database, other: Database, seed: int) -> None:
    fill(database, seed)
    file = exported(database)
    imported = from_json(other, file)
    assert {one.outcome for one in imported} == {"added"}
    assert all_records(other) == all_records(database)
    assert exported(other) == file
    for one in database.conversations():
        assert other.messages(one.id) == database.messages(one.id)
    # A second import changes nothing, on either side.
    assert {one.outcome for one in from_json(other, file) + from_json(database, file)} == {"skipped"}
    assert exported(other) == exported(database) == file
    assert other._connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_an_imported_conversation_can_be_searched_and_continued(database: Database, other: Database) -> None:
    conversation = database.create("Foxes", None, "fp16")
    database.add_message(conversation.id, "user", "a vixen")
    from_json(other, exported(database))
    assert len(other.search("vixen")) == len(other.search("foxes")) == 1
    other.add_message(conversation.id, "assistant", "yes")
    assert [m.content for m in other.messages(conversation.id)] == ["a vixen", "yes"]


def test_a_conflicting_id_makes_a_copy(database: Database) -> None:
    conversation = database.create("t", None, "fp16")
    first = database.add_message(conversation.id, "user", "q")
    database.add_message(conversation.id, "assistant", "a")
    file = exported(database)
    database.rename(conversation.id, "mine now")
    database.add_sibling(first.id, "otherwise")
    before = database.conversation(conversation.id), database.tree(conversation.id)
    (copied,) = from_json(database, file)
    assert copied.outcome == "copied" and copied.conversation.id != conversation.id
    assert (database.conversation(conversation.id), database.tree(conversation.id)) == before
    assert [m.content for m in database.messages(copied.conversation.id)] == ["q", "a"]
    assert not {m.id for m in database.tree(copied.conversation.id)} & {m.id for m in before[1]}


def test_a_conflicting_message_id_makes_a_copy(database: Database) -> None:
    conversation = database.create("t", None, "fp16")
    database.add_message(conversation.id, "user", "q")
    whole = json.loads(exported(database))
    whole["conversations"][0]["id"] = "stranger"
    (copied,) = from_json(database, json.dumps(whole).encode())
    assert copied.outcome == "copied"
    assert [m.content for m in database.messages(conversation.id)] == ["q"]
    assert len(database.conversations()) == 2


def test_importing_a_deleted_conversation_restores_it(database: Database) -> None:
    conversation = database.create("t", None, "fp16")
    database.add_message(conversation.id, "user", "q")
    file, before = exported(database), all_records(database)
    database.delete(conversation.id)
    assert [one.outcome for one in from_json(database, file)] == ["restored"]
    assert all_records(database) == before
    database.rename(conversation.id, "changed")
    database.delete(conversation.id)
    assert [one.outcome for one in from_json(database, file)] == ["copied"]
    assert database.deleted()[0].title == "changed"


def test_a_conversation_twice_in_a_file_is_imported_once(database: Database, other: Database) -> None:
    database.create("t", None, "fp16")
    whole = json.loads(exported(database))
    whole["conversations"] *= 2
    assert [one.outcome for one in from_json(other, json.dumps(whole).encode())] == ["added", "skipped"]


Change = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f, c, m: f.update(format="x"), "not a tqchat export"),
        (lambda f, c, m: f.update(version=import_parser.VERSION + 1), "written by a newer tqchat"),
        (lambda f, c, m: f.update(version=True), "not a tqchat export"),
        (lambda f, c, m: f.update(version=None), "not a tqchat export"),
        (lambda f, c, m: f.update(more=1), "not a tqchat export"),
        (lambda f, c, m: f.update(conversations={}), "must be a list"),
        (lambda f, c, m: f.update(conversations=[1]), "conversation 1 must be an object"),
        (lambda f, c, m: c.pop("title"), "conversation 2 has no title"),
        (lambda f, c, m: c.pop("model"), "conversation 2 has no model"),
        (lambda f, c, m: c.update(title=None), "title of conversation 2 is None, but must be a text"),
        (lambda f, c, m: c.update(extra=1), "conversation 2 has an unknown field 'extra'"),
        (lambda f, c, m: c.update(deleted_at=1), "unknown field"),
        (lambda f, c, m: c.update(id="../../etc"), "must be an id"),
        (lambda f, c, m: c.update(id="a" * 65), "must be an id"),
        (lambda f, c, m: c.update(id=["x"]), "is a list, but must be an id"),
        (lambda f, c, m: c.update(scheme="zip"), "must be a cache scheme"),
        (lambda f, c, m: c.update(created_at=float("nan")), "must be a number"),
        (lambda f, c, m: c.update(created_at=float("inf")), "must be a number"),
        (lambda f, c, m: c.update(updated_at=1e300), "must be a number"),
        (lambda f, c, m: c.update(updated_at=10**400), "must be a number"),
        (lambda f, c, m: c.update(created_at=-1), "must be a number"),
        (lambda f, c, m: c.update(created_at=True), "must be a number"),
        (lambda f, c, m: c.update(title_is_automatic=1), "true or false"),
        (lambda f, c, m: c.update(sampling={"heat": 1}), "no sampling setting 'heat'"),
        (lambda f, c, m: c.update(sampling={"seed": "1"}), "seed is '1'"),
        (lambda f, c, m: c.update(sampling={"seed": "x" * 9999}), "seed is"),
        (lambda f, c, m: c.update(sampling=[]), "an object of sampling"),
        (lambda f, c, m: c.update(head_id="nowhere"), "head_id of conversation 2 is not one of its messages"),
        (lambda f, c, m: c.update(head_id={}), "must be an id"),
        (lambda f, c, m: c.update(messages=None), "with a list of messages"),
        (lambda f, c, m: c.update(messages=[[]]), "message 1 of conversation 2 must be an object"),
        (lambda f, c, m: c["messages"].append(m), "has the id of an earlier message"),
        (lambda f, c, m: c["messages"].reverse(), "parent of message 1 of conversation 2 does not come"),
        (lambda f, c, m: m.update(parent_id=m["id"]), "parent of message 2"),
        (lambda f, c, m: m.update(role="tool"), "one of system, user, assistant"),
        (lambda f, c, m: m.update(role=["user"]), "one of system"),
        (lambda f, c, m: m.update(status=None), "one of complete"),
        (lambda f, c, m: m.update(content=5), "must be a text"),
        (lambda f, c, m: m.update(content="x" * (16 << 20) + "x"), "at most 16,777,216"),
        (lambda f, c, m: m.update(tokens=-1), "whole number"),
        (lambda f, c, m: m.update(tokens=1.5), "whole number"),
        (lambda f, c, m: m.update(tokens=2**70), "whole number"),
        (lambda f, c, m: m.update(conversation_id="x"), "unknown field"),
    ],
)
def test_an_invalid_file_imports_nothing(
    database: Database, other: Database, change: Change, sentence: str
) -> None:
    for title in ("right", "wrong"):
        conversation = database.create(title, None, "fp16")
        database.add_message(conversation.id, "user", "q")
        database.add_message(conversation.id, "assistant", "a")
    whole = json.loads(exported(database))
    bad = whole["conversations"][1]
    change(whole, bad, bad["messages"][1])
    with pytest.raises(BadImport) as raised:
        from_json(other, json.dumps(whole).encode())
    assert sentence in str(raised.value)
    assert str(raised.value).endswith("Nothing was imported.") and len(str(raised.value)) < 400
    assert other.conversations() == [] and other.deleted() == []


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"null", b"[]", b"1", b'"x"', b"\xff\xfe", b"\x00" * 100, b"[" * 200_000, b"9" * 5000),
        *(b'{"a":' * 200_000, b"NaN", b"SQLite format 3\x00", b'{"format": "tqchat-conversations"}'),
    ],
)
def test_other_files_are_refused(database: Database, content: bytes) -> None:
    with pytest.raises(BadImport, match="cannot be imported"):
        from_json(database, content)


def test_a_file_over_the_limit_is_not_parsed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_FILE_BYTES", 1 << 20)
    with pytest.raises(BadImport, match=r"larger than 1\.05 MB"):
        from_json(database, b" " * ((1 << 20) + 1))


def test_random_damage_is_refused_or_harmless(database: Database, other: Database) -> None:
    fill(database, 3)
    file = exported(database)
    rng = random.Random(5)
    for _ in range(300):
        damaged = bytearray(file)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(damaged))
            action = rng.randrange(3)
            if action == 0:
                damaged[at] = rng.randrange(256)
            elif action == 1:
                del damaged[at : at + rng.randint(1, 50)]
            else:
                damaged[at:at] = damaged[at : at + rng.randint(1, 50)]
        try:
            from_json(other, bytes(damaged))
        except BadImport:
            continue
        # Damage inside a text leaves a valid file; its import must be consistent.
        for one in other.conversations():
            assert len(other.messages(one.id)) <= len(other.tree(one.id))
    assert other._connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert other._connection.execute("PRAGMA foreign_key_check").fetchall() == []
    from_json(other, exported(other))


def test_lone_surrogates_are_replaced(database: Database, other: Database) -> None:
    database.create("t", None, "fp16")
    file = exported(database).replace(b'"title": "t"', b'"title": "\\ud800"')
    (imported,) = from_json(other, file)
    assert other.conversation(imported.conversation.id).title == "\ufffd"


def test_optional_fields_can_be_omitted(database: Database) -> None:
    message = json.loads(
        '{"id": "m1", "parent_id": null, "role": "user", "content": "hi", "status": "complete",'
        ' "created_at": 5}'
    )
    conversation = json.loads(
        '{"id": "c1", "title": "By hand", "model": null, "scheme": "fp16", "created_at": 5,'
        ' "updated_at": 6, "head_id": "m1", "title_is_automatic": false}'
    )
    conversation["messages"] = [message]
    whole = {"format": "tqchat-conversations", "version": 1, "conversations": [conversation]}
    from_json(database, json.dumps(whole).encode())
    assert [m.content for m in database.messages("c1")] == ["hi"]
    assert from_json(database, json.dumps(copy.deepcopy(whole)).encode())[0].outcome == "skipped"


@pytest.mark.parametrize("version", [1, 2])
def test_reasoning_in_the_text_of_older_exports_is_split_as_the_migration_does(
    database: Database, version: int
) -> None:
    messages = [
        {
            "id": f"m{n}",
            "parent_id": f"m{n - 1}" if n else None,
            "role": "assistant",
            "content": content,
            "status": "complete",
            "created_at": 5,
        }
        for n, (content, _, _) in enumerate(KEPT_WITH_MARKS)
    ]
    messages.append(messages[0] | {"id": "mine", "role": "user"})
    conversation = {
        "id": "c1", "title": "Old", "model": None, "scheme": "fp16", "created_at": 5, "updated_at": 6,
        "head_id": messages[-2]["id"], "title_is_automatic": False, "messages": messages,
    }  # fmt: skip
    whole = {"format": "tqchat-conversations", "version": version, "conversations": [conversation]}
    from_json(database, json.dumps(whole).encode())
    found = [(one.reasoning, one.content) for one in database.messages("c1")]
    assert found == [(reasoning, content) for _, reasoning, content in KEPT_WITH_MARKS]
    own = database.message("mine")
    assert (own.reasoning, own.content) == (None, KEPT_WITH_MARKS[0][0])
    from_json(database, json.dumps(whole | {"version": 3}).encode())
    copied = next(one for one in database.conversations() if one.id != "c1")
    assert database.messages(copied.id)[0].content == KEPT_WITH_MARKS[0][0], "text of a newer export is kept"


def test_a_full_disk_imports_nothing(database: Database, other: Database) -> None:
    for _ in range(3):
        conversation = database.create("t", None, "fp16")
        database.add_message(conversation.id, "user", "x" * 50_000)
    kept = other.create("kept", None, "fp16")
    pages = other._connection.execute("PRAGMA page_count").fetchone()[0]
    other._connection.execute(f"PRAGMA max_page_count = {pages + 60}")
    with pytest.raises(StoreFull):
        from_json(other, exported(database))
    assert other.conversations() == [kept]


def test_markdown_contains_the_shown_branch(database: Database) -> None:
    conversation = database.create("A\nfox", "starter", "fp16", system_prompt="Be brief.")
    database.add_message(conversation.id, "user", "What is a *fox*?\n\n\x1b[2J")
    first = database.add_message(conversation.id, "assistant", "hidden")
    database.add_sibling(first.id, "```\ncode\n```\n", "stopped", model="starter")
    text = to_markdown(database, conversation)
    created = text.splitlines()[2]
    assert created.endswith(", starter*")
    assert text == (
        f"# A fox\n\n{created}\n\n## System\n\nBe brief.\n\n## You\n\nWhat is a *fox*?\n\n\x1b[2J\n\n"
        "## starter (stopped)\n\n```\ncode\n```\n\n"
        "*1 more message on other branches; export as JSON to keep them.*\n"
    )
