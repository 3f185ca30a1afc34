"""``tqchat import`` of ChatGPT, Claude, LM Studio and Markdown: what arrives, and nothing twice."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli import exports
from tests.cli.test_cli import Captured, fails
from tqchat.cli import main
from tqchat.paths import Paths
from tqchat.store.database import Database, Message


def said(messages: list[Message]) -> list[tuple[str, str]]:
    return [(one.role, one.content) for one in messages]


@pytest.fixture
def database(paths: Paths) -> Iterator[Database]:
    with Database(paths.database) as opened:
        yield opened


def write(path: Path, value: object) -> str:
    path.write_bytes(value if isinstance(value, bytes) else exports.as_json(value))
    return str(path)


def imports(capsys: Captured, *arguments: str, code: int = 0) -> str:
    assert main(["import", *arguments]) == code
    return capsys.readouterr().out


def test_chatgpt(capsys: Captured, database: Database, tmp_path: Path) -> None:
    data = exports.as_json(exports.chatgpt())
    other = [("chat.html", b"<html>"), ("user.json", b'{"id": 1}'), ("message_feedback.json", b"[]")]
    file = write(tmp_path / "data.zip", exports.zipped(*other, ("export/conversations-000.json", data)))
    shown = imports(capsys, file).splitlines()
    assert shown[-2:] == [
        "ChatGPT: 2 conversations, 8 new messages, 2 other versions.",
        "2 imported, 0 already here, 1 without messages.",
    ]
    foxes, picture = database.conversations()
    assert (foxes.title, foxes.title_is_automatic, foxes.model, foxes.scheme) == (
        "Counting foxes",
        False,
        None,
        "auto",
    )
    assert (foxes.created_at, foxes.updated_at) == (1_700_000_000.5, 1_700_001_000.5)
    shown_branch = database.messages(foxes.id)
    assert said(shown_branch) == [
        ("user", "How many foxes?"),
        ("assistant", "```python\nprint(3)\n```\n\n```\n3\n```\n\nThere are **three**."),
        ("user", "Sure?"),
        ("assistant", "Yes."),
    ]
    reply = shown_branch[1]
    assert (reply.reasoning, reply.model, reply.created_at) == ("I count them.", "o3", 1_700_000_002.0)
    assert [one.content for one in database.siblings(reply.id)][1:] == ["Four."]
    assert [one.content for one in database.siblings(shown_branch[2].id)] == ["Sure?", "Really?"]
    assert picture.title == "" and picture.title_is_automatic
    assert said(database.messages(picture.id)) == [
        ("user", "*[image]*\n\nWhat is this?\n\n*[file: den.png]*"),
        ("assistant", "A den. 狐🦊"),
    ]
    assert database.search("vixen") == [] and len(database.search("three")) == 1

    before = list(database._connection.iterdump())
    bare = write(tmp_path / "conversations.json", data)
    for again in (file, bare):
        assert imports(capsys, again).endswith("0 imported, 2 already here, 1 without messages.\n")
    assert list(database._connection.iterdump()) == before


def test_what_was_changed_here_stays_and_what_is_new_there_comes(
    capsys: Captured, database: Database, tmp_path: Path
) -> None:
    (foxes, *_) = exports.chatgpt()
    file = write(tmp_path / "conversations.json", [foxes])
    imports(capsys, file)
    (here,) = database.conversations()
    first, _, sure, last = database.messages(here.id)
    database.rename(here.id, "My foxes")
    database.delete_message(sure.id)
    assert "0 imported, 1 already here" in imports(capsys, file)
    grown = copy.deepcopy(foxes)
    grown["mapping"]["u4"] = exports.chatgpt_node("u4", "a3", "user", "Thanks!", time=1_700_000_020.0)
    grown["mapping"]["u5"] = exports.chatgpt_node("u5", "u2", "assistant", "Maybe.", time=1_700_000_021.0)
    grown |= {"current_node": "u4", "update_time": 1_800_000_000.0}
    newer = write(tmp_path / "newer.json", [grown])
    assert "1 extended" in imports(capsys, newer)
    assert [one.content for one in database.messages(here.id)] == [
        first.content,
        database.messages(here.id)[1].content,
        last.content,
        "Thanks!",
    ]
    assert database.conversation(here.id).title == "My foxes"
    assert database.conversation(here.id).updated_at == 1_800_000_000.0
    assert not database.search("Sure?"), "a message that was deleted here stays deleted"
    assert len(database.search("Maybe")) == 1
    assert "0 imported, 1 already here" in imports(capsys, newer)

    # Deleted and imported again: it is restored, once.
    database.delete(here.id)
    assert "restored: it had been deleted" in imports(capsys, newer)
    assert len(database.conversations()) == 1
    # Continued here: the shown branch stays, whatever else comes.
    database.add_message(here.id, "user", "mine")
    grown["mapping"]["u6"] = exports.chatgpt_node("u6", "u4", "assistant", "Bye.", time=1_700_000_030.0)
    assert "1 extended" in imports(capsys, write(tmp_path / "newest.json", [grown | {"current_node": "u6"}]))
    assert database.messages(here.id)[-1].content == "mine"
    # Open in another process: nothing is written to it.
    grown["mapping"]["u7"] = exports.chatgpt_node("u7", "u6", "user", "More")
    write(tmp_path / "last.json", [grown])
    with database.leases.acquire(here.id):
        command = [sys.executable, "-m", "tqchat", "import", str(tmp_path / "last.json")]
        result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "open in another tqchat" in result.stdout
    # Deleted for good: it comes back whole.
    database.delete(here.id)
    assert database.purge(2e9) == 1
    assert "1 imported, 0 already here" in imports(capsys, newer)


def test_claude(capsys: Captured, database: Database, tmp_path: Path) -> None:
    data = exports.zipped(("conversations.json", exports.as_json(exports.claude())), ("users.json", b"[]"))
    file = write(tmp_path / "claude.zip", data)
    assert imports(capsys, file).splitlines()[-2:] == [
        "Claude: 2 conversations, 7 new messages, 1 other version.",
        "2 imported, 0 already here, 1 without messages.",
    ]
    poem, old = database.conversations()
    messages = database.messages(poem.id)
    assert said(messages) == [
        ("user", "Write it.\n\nAttached file notes.txt:\n```\nRed\nfox\n```\n\n*[file: p.png]*"),
        ("assistant", "Here it is:\n\n*[Fox]*\n\n```python\nprint('fox')\n```\n\n```\nOK\n```"),
        ("user", "Shorter"),
        ("assistant", "Fox."),
    ]
    assert messages[1].reasoning == "It wants a poem."
    assert [one.model for one in messages] == [None, "Claude", None, "Claude"], "not the local model"
    assert messages[0].created_at == pytest.approx(1_714_557_600.123456)
    assert [one.content for one in database.siblings(messages[2].id)] == ["Longer", "Shorter"]
    assert said(database.messages(old.id)) == [("user", "Hi"), ("assistant", "Hello!")]
    assert "0 imported, 2 already here" in imports(capsys, file)


def test_lm_studio(capsys: Captured, database: Database, tmp_path: Path) -> None:
    talk = exports.lm_studio()
    folder = tmp_path / "conversations" / "animals"
    folder.mkdir(parents=True)
    write(folder / "1732012345678.conversation.json", talk)
    (folder / "notes.txt").write_text("ignored")
    (folder / "link").symlink_to(tmp_path, target_is_directory=True)
    assert "LM Studio: 1 conversation, 5 new messages, 1 other version." in imports(capsys, str(tmp_path))
    (vixens,) = database.conversations()
    assert (vixens.title, vixens.system_prompt, vixens.created_at) == (
        "Vixens",
        "Be brief.",
        pytest.approx(1_732_012_345.678),
    )
    messages = database.messages(vixens.id)
    assert said(messages) == [
        ("user", "What is a vixen?\n\n*[file: 17 - notes.pdf]*"),
        ("assistant", "A female fox."),
        ("user", "And a dog fox?"),
        ("assistant", "A male."),
    ]
    assert (messages[1].reasoning, messages[1].model) == ("Let me think.", "qwen3-4b")
    second = database.siblings(messages[1].id)[1]
    assert (second.content, second.reasoning) == ("A she-fox.", "Hm.")
    assert "0 imported, 1 already here" in imports(capsys, str(tmp_path))
    # It has grown, and the other version of the first answer is chosen.
    grown = copy.deepcopy(talk)
    grown["messages"].append({"versions": [{"role": "user", "content": [{"type": "text", "text": "Ok"}]}]})
    assert "(1 new message)" in imports(capsys, write(tmp_path / "x.conversation.json", grown))
    assert database.messages(vixens.id)[-1].content == "Ok"
    plain = {"messages": [{"role": "user", "content": "Hey"}, {"role": "assistant", "content": "Ho"}]}
    assert "1 imported" in imports(capsys, write(tmp_path / "plain.json", plain))


def test_markdown(capsys: Captured, database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "chats"
    folder.mkdir()
    write(folder / "foxes.md", exports.MARKDOWN.encode())
    write(folder / "b.markdown", b"**You:** Hi\r\n\r\n**Claude:** Hello\r\n**Note:** yes\r\n")
    write(folder / "c.md", b"Human: one\nAssistant: two\nThe end: three\n\nHuman: four\n")
    write(folder / "README.md", b"# A list\n\nNobody speaks here.\n")
    shown = imports(capsys, str(folder))
    assert "Markdown: 3 conversations, 8 new messages, 0 other versions." in shown
    assert "3 imported, 0 already here, 1 without messages." in shown
    talks = {one.title: one for one in database.conversations()}
    assert talks.keys() == {"Red foxes", "b", "c"}
    assert said(database.messages(talks["Red foxes"].id)) == [
        ("user", "What eats a fox?\n\n```md\n### User\nno message\n```"),
        ("assistant", "**Bold:** an eagle.\n\n### Summary\n\nNot a speaker."),
        ("user", "Thanks"),
    ]
    assert database.messages(talks["Red foxes"].id)[1].model == "ChatGPT"
    assert said(database.messages(talks["b"].id)) == [("user", "Hi"), ("assistant", "Hello\n**Note:** yes")]
    assert said(database.messages(talks["c"].id)) == [
        ("user", "one"),
        ("assistant", "two\nThe end: three"),
        ("user", "four"),
    ]
    (folder / "moved").mkdir()
    (folder / "c.md").rename(folder / "moved" / "c.md")
    with (folder / "foxes.md").open("a") as file:
        file.write("\n### ChatGPT\n\nWelcome.\n")
    shown = imports(capsys, str(folder))
    assert "0 imported, 2 already here, 1 extended" in shown
    assert database.messages(talks["Red foxes"].id)[-1].content == "Welcome."


def test_an_export_as_markdown_comes_back(
    capsys: Captured, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = database.create("Foxes", "a/model", "auto", system_prompt="Be brief.")
    database.add_message(one.id, "user", "What is a fox?\n\n# Heading\n")
    database.add_message(one.id, "assistant", "An animal.\n\n## Two words\n\nRed.", model="model-4b")
    database.add_message(one.id, "user", "And?")
    database.add_message(one.id, "assistant", "No", status="stopped", model="other/model + pirate")
    two = database.create("Badgers", None, "auto")
    database.add_message(two.id, "user", "Hi")
    database.add_message(two.id, "assistant", "Hello", model="starter")
    file = tmp_path / "all.md"
    assert main(["export", "--all", "-o", str(file)]) == 0
    monkeypatch.setenv("TQCHAT_HOME", str(tmp_path / "other"))
    assert "2 imported" in imports(capsys, str(file))
    with Database(tmp_path / "other" / "data" / "tqchat.db") as other:
        back = {found.title: found for found in other.conversations()}
        assert back["Foxes"].system_prompt == "Be brief."
        for mine in (one, two):
            assert [
                (m.role, m.content.strip(), m.status, m.model if m.role == "assistant" else None)
                for m in other.messages(back[mine.title].id)
            ] == [
                (m.role, m.content.strip(), m.status, m.model if m.role == "assistant" else None)
                for m in database.messages(mine.id)
            ]


EXPORTED = "# Owls\n\n*2026-01-02 10:00, starter*\n\n## You\n\nHi\n\n## starter\n\nHello"
HEADINGS = [
    "## You\n\nsaid it.\n\n## Assistant\n\nYes.",
    "##  Two spaces\n\n##   You\n#  One\n##\tYou\n##\n##No\n### You",
    "# You\n\n**You:** Hi\n\nYou: Hi",
    f"It was:\n\n---\n\n{EXPORTED}",
    f"It was:\n\n```\n\n---\n\n{EXPORTED}\n```\n\n## You",
    "1. A list\n\n   ```\n   ## You\n   ```\n\n## claude",
]


@pytest.mark.parametrize("title", ["Foxes", "You", "Claude or Llama", "## You"])
def test_headings_within_messages_of_an_export_begin_no_message(
    capsys: Captured, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str
) -> None:
    for number in range(2):
        name = f"{title} {number}" if number else title
        talk = database.create(name, "a/model", "auto", system_prompt=HEADINGS[0])
        for text in HEADINGS:
            database.add_message(talk.id, "user", text)
            database.add_message(talk.id, "assistant", text, model="starter")
    file = tmp_path / "all.md"
    assert main(["export", "--all", "-o", str(file)]) == 0
    assert "\n##  You\n\nsaid it.\n\n##  Assistant\n" in file.read_text()
    monkeypatch.setenv("TQCHAT_HOME", str(tmp_path / "other"))
    assert "2 imported" in imports(capsys, str(file))
    with Database(tmp_path / "other" / "data" / "tqchat.db") as other:
        assert {one.title for one in other.conversations()} == {title, f"{title} 1"}
        for one in other.conversations():
            assert one.system_prompt == HEADINGS[0]
            said = [(message.role, message.content) for message in other.messages(one.id)]
            assert said == [(role, text) for text in HEADINGS for role in ("user", "assistant")]


def test_an_export_of_an_earlier_version_is_imported(
    capsys: Captured, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "old.md"
    file.write_text(
        "# Foxes\n\n*2026-01-02 10:00, a/model*\n\n## You\n\nHi\n\n## a/model\n\n## Two words\n\nRed.\n"
        f"\n---\n\n{EXPORTED}\n"
    )
    assert "2 imported" in imports(capsys, str(file))
    said = {one.title: [m.content for m in database.messages(one.id)] for one in database.conversations()}
    assert said == {"Foxes": ["Hi", "## Two words\n\nRed."], "Owls": ["Hi", "Hello"]}


def test_markdown_from_a_pipe_and_from_a_file_of_another_name(
    capsys: Captured, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``tqchat export`` writes to a pipe, ``tqchat import`` reads from one."""
    own = database.create("Foxes", None, "auto").id
    database.add_message(own, "user", "What is a fox?")
    assert main(["export", own]) == 0
    chat = capsys.readouterr().out
    other = tmp_path / "other"
    command = [sys.executable, "-m", "tqchat", "import", "-"]
    monkeypatch.setenv("TQCHAT_HOME", str(other))
    found = subprocess.run(command, input="\ufeff" + chat, capture_output=True, text=True, encoding="utf-8")
    assert (found.returncode, found.stderr) == (0, "")
    with Database(other / "data" / "tqchat.db") as imported:
        (foxes,) = imported.conversations()
        assert foxes.title == "Foxes"
        assert said(imported.messages(foxes.id)) == [("user", "What is a fox?")]
    assert "0 imported, 1 already here" in imports(capsys, write(tmp_path / "fox.txt", chat.encode()))
    assert (
        "Standard input is no chat"
        in subprocess.run(command, input="Hello", capture_output=True, text=True).stderr
    )
    for odd, reason in ((b"\xff\xfe", "UTF-8"), (b"", "JSON"), (b"{", "JSON"), (b" [1", "JSON")):
        assert reason in fails(capsys, 2, "import", write(tmp_path / "odd", odd))


def test_an_import_makes_no_temporary_folder(
    capsys: Captured, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill would leave it, and the system's temporary folder may be full."""
    file = write(tmp_path / "conversations.json", exports.chatgpt())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert "2 imported" in imports(capsys, file)


def test_a_dry_run_says_all_and_changes_nothing(
    capsys: Captured, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "conversations.json", exports.chatgpt())
    shown = imports(capsys, file, "--dry-run")
    assert "Counting foxes" in shown and "ChatGPT: 2 conversations, 8 new messages" in shown
    assert shown.endswith("2 would be imported, 0 already here, 1 without messages.\nNothing was changed.\n")
    assert not home.exists()
    imports(capsys, file)
    with Database(home / "data" / "tqchat.db") as database:
        before = list(database._connection.iterdump())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(exports.as_json(exports.claude()))))
        shown = imports(capsys, "-", "--dry-run")
        assert "2 would be imported" in shown
        assert "0 would be imported, 2 already here" in imports(capsys, file, "--dry-run")
        assert list(database._connection.iterdump()) == before


def test_one_bad_conversation_does_not_keep_the_others_out(
    capsys: Captured, database: Database, tmp_path: Path
) -> None:
    (foxes, *_) = exports.chatgpt()
    wrong: list[Any] = [7, {}, {"title": "T", "mapping": []}, {"chat_messages": {}}, {"messages": "x"}]
    file = write(tmp_path / "conversations.json", [*wrong, foxes])
    assert main(["import", file]) == 1
    output = capsys.readouterr()
    assert "1 imported, 0 already here, 5 cannot be read." in output.out
    assert output.err.count("tqchat: conversation ") == 5 and "conversation 1 is no object" in output.err
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "conversations.json", exports.as_json(exports.claude())[:-30])
    write(folder / "chat.md", exports.MARKDOWN.encode())
    assert main(["import", str(folder)]) == 1
    output = capsys.readouterr()
    assert "1 imported, 0 already here, 1 cannot be read." in output.out
    assert "tqchat: conversations.json: it is not JSON" in output.err
    assert len(database.conversations()) == 2


def circle(*keys: str) -> dict[str, Any]:
    nodes = [
        exports.chatgpt_node(key, keys[index - 1], "user" if index % 2 else "assistant", f"text {key}")
        for index, key in enumerate(keys)
    ]
    return exports.chatgpt_conversation(*nodes, id="circle", title="Round", current=keys[0])


def test_trees_that_are_none(capsys: Captured, database: Database, tmp_path: Path) -> None:
    """Circles, unknown parents and heads, wrong types: every text arrives, parents first."""
    loose = exports.chatgpt_conversation(
        exports.chatgpt_node("a", "gone", "user", "lost parent"),
        exports.chatgpt_node("b", "b", "assistant", "own parent"),
        {
            "id": "c",
            "message": {"author": "x", "content": {"parts": [None, 1, {"text": 2}, ["x"]]}},
            "parent": [],
        },
        {"id": "d", "message": "x", "parent": "a"},
        exports.chatgpt_node("e", "d", "assistant", "answer", time=float("1e300")),
        id="loose",
        title="Loose",
        current="nowhere",
    )
    loose["create_time"] = "yesterday"
    twins = {
        "uuid": "twins",
        "name": None,
        "chat_messages": [exports.claude_message("x", "human", text) for text in ("one", "two")],
    }
    file = write(tmp_path / "conversations.json", [circle("a", "b", "c", "d"), loose, twins])
    imports(capsys, file)
    found = {one.title: database.tree(one.id) for one in database.conversations()}
    assert sorted(one.content for one in found["Round"]) == ["text a", "text b", "text c", "text d"]
    assert {one.content for one in found["Loose"]} == {"lost parent", "own parent", "answer"}
    assert [one.content for one in found[""]] == ["one", "two"]
    for messages in found.values():
        ids = [one.id for one in messages]
        assert all(one.parent_id is None or ids.index(one.parent_id) < ids.index(one.id) for one in messages)
    assert database._connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert "0 imported, 3 already here" in imports(capsys, file)


def test_conversations_without_ids_are_told_apart(
    capsys: Captured, database: Database, tmp_path: Path
) -> None:
    """Other programs write these formats too, and number the messages of each conversation from 1."""
    chats: list[dict[str, Any]] = []
    for subject in ("Foxes", "Owls"):
        asked = exports.chatgpt_node("1", None, "user", f"About {subject}")
        chat = exports.chatgpt_conversation(asked, id="x", title=subject, current="1")
        del chat["id"], chat["conversation_id"]
        chats.append(chat)
    for subject in ("Bears", "Cats"):
        asked = exports.claude_message("1", "human", f"About {subject}")
        chats.append({"name": subject, "chat_messages": [asked]})
    file = write(tmp_path / "conversations.json", chats)
    imports(capsys, file)
    found = {one.title: database.messages(one.id)[0].content for one in database.conversations()}
    assert found == {name: f"About {name}" for name in ("Foxes", "Owls", "Bears", "Cats")}
    assert "0 imported, 4 already here" in imports(capsys, file)


HOSTILE = {
    "no.zip": b"PK\x03\x04 this is no archive",
    "empty.zip": exports.zipped(("readme.txt", b"x")),
    "cut.zip": exports.zipped(("conversations.json", b"[" + b" " * 5000 + b"]"))[:-30],
    "json.zip": exports.zipped(("conversations.json", b'[{"mapping": {')),
    "deep.json": b"[" * 100_000,
    "nodes.json": b'[{"mapping": {"a": {"message": ' + b"[" * 50_000 + b"]" * 50_000 + b"}}}]",
    "digits.json": b'[{"create_time": ' + b"9" * 5000 + b', "mapping": {}}]',
    "utf16.json": "[]".encode("utf-16"),
    "nul.json": b"\0" * 100,
    "object.json": b'{"a": 1}',
    "list.json": b"[]",
    "text.md": b"\xff\xfe",
    "nobody.md": b"Nobody speaks.\n" * 100,
    "parts.json": b'[{"mapping": {"a": {"message": {"content": {"parts": [' + b"{}," * 100_001 + b"1]}}}}}]",
    "more.json": b"[] []",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_or_hostile_file_is_one_sentence(
    capsys: Captured, database: Database, tmp_path: Path, name: str
) -> None:
    kept = database.create("Mine", None, "auto")
    file = write(tmp_path / name, HOSTILE[name])
    said = fails(capsys, 2, "import", file)
    assert said.startswith("tqchat: The file cannot be imported: ") and said.endswith(
        "Nothing was imported.\n"
    )
    assert [one.id for one in database.conversations()] == [kept.id]


def test_a_large_export_takes_little_memory(capsys: Captured, database: Database, tmp_path: Path) -> None:
    """An archive that unpacks to a hundred times its size, of messages that are left out."""
    hidden = exports.chatgpt_node("n", None, "user", "x" * 80_000, is_visually_hidden_from_conversation=True)
    fox = exports.chatgpt_conversation(
        exports.chatgpt_node("a", None, "user", "fox"), id="i", title="t", current="a"
    )
    empty = exports.chatgpt_conversation(hidden, id="h", title="", current="n")
    data = json.dumps([empty] * 200 + [fox]).encode()
    file = write(tmp_path / "data.zip", exports.zipped(("conversations.json", data)))
    assert Path(file).stat().st_size < len(data) / 100
    tracemalloc.start()
    try:
        assert "1 imported, 0 already here, 200 without messages." in imports(capsys, file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data) > 16_000_000 and peak < 2_000_000
