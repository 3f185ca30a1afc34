"""``tqchat ls --json``, ``rm`` and ``rm --undo``, and the id of a conversation in place of a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_cli import Captured, fails
from tqchat.cli import main
from tqchat.paths import Paths
from tqchat.store.database import Database


@pytest.fixture
def ids(paths: Paths) -> list[str]:
    """Ids of two conversations, the older one first, which has two versions of an answer."""
    with Database(paths.database) as database:
        old = database.create("Foxes \x1b[31m狐", "a/model", "fp16")
        database.add_message(old.id, "user", "What is a vixen?")
        answer = database.add_message(old.id, "assistant", "A fox.", tokens=3)
        database.add_sibling(answer.id, "A female fox.", tokens=4)
        new = database.create("Badgers", None, "auto")
        database.add_message(new.id, "user", "What is a sett?")
    return [old.id, new.id]


def test_ls_as_json(capsys: Captured, paths: Paths, ids: list[str]) -> None:
    assert main(["ls", "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.isascii() and "\x1b" not in printed
    badgers, foxes = json.loads(printed)
    assert foxes | {"created_at": 0, "updated_at": 0} == {
        "id": ids[0],
        "title": "Foxes \x1b[31m狐",
        "model": "a/model",
        "scheme": "fp16",
        "created_at": 0,
        "updated_at": 0,
        "messages": 3,
        "tokens": 7,
    }
    assert badgers["id"] == ids[1] and badgers["updated_at"] >= foxes["updated_at"] > 1e9


def test_ls_as_json_without_conversations(capsys: Captured, home: Path) -> None:
    assert main(["ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert not home.exists()


def test_rm_and_its_undo(capsys: Captured, paths: Paths, ids: list[str]) -> None:
    cache = paths.caches / ids[0]
    cache.mkdir(parents=True)
    (cache / "manifest.json").write_text("{}")
    assert main(["rm", ids[0][:6]]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{ids[0][:8]}  Foxes") and f"`tqchat rm --undo {ids[0][:8]}`" in shown
    assert not cache.exists()
    assert "tqchat ls" in fails(capsys, 2, "show", ids[0])
    assert "tqchat ls" in fails(capsys, 2, "rm", ids[0])
    assert main(["rm", "--undo", ids[0][:8]]) == 0
    capsys.readouterr()
    assert main(["show", ids[0]]) == 0
    assert "A female fox." in capsys.readouterr().out

    assert main(["rm", *ids]) == 0
    assert "restores them for 24 hours" in capsys.readouterr().out
    assert main(["rm", "--undo"]) == 0
    assert "Badgers" in capsys.readouterr().out or main(["show", ids[1]]) == 0
    assert main(["rm", "--undo", ids[0]]) == 0
    capsys.readouterr()
    assert main(["ls"]) == 0
    assert capsys.readouterr().out.count("\n") == 2


def test_rm_deletes_all_or_nothing(capsys: Captured, paths: Paths, ids: list[str]) -> None:
    assert "tqchat ls" in fails(capsys, 2, "rm", ids[0], "none")
    with Database(paths.database) as database, database.leases.acquire(ids[1]):
        code = "import sys; from tqchat.cli import main; sys.exit(main(sys.argv[1:]))"
        result = subprocess.run([sys.executable, "-c", code, "rm", *ids], capture_output=True, text=True)
        assert result.returncode == 1 and "open in another tqchat" in result.stderr
    assert "by their ids" in fails(capsys, 2, "rm")
    assert "No conversation was deleted" in fails(capsys, 2, "rm", "--undo")
    assert main(["ls"]) == 0
    assert capsys.readouterr().out.count("\n") == 2
    assert main(["rm", ids[0]]) == 0
    capsys.readouterr()
    assert ids[0][:8] in fails(capsys, 2, "rm", "--undo", "xyz")


@pytest.mark.parametrize("arguments", [["open"], [], ["--model", "a/b"]])
def test_an_id_opens_the_app(capsys: Captured, ids: list[str], arguments: list[str]) -> None:
    """Without a terminal the app cannot open; the id has been found by then."""
    assert "The app needs a terminal" in fails(capsys, 2, *arguments, ids[0][:7])


def test_what_is_neither_a_command_nor_an_id(capsys: Captured, ids: list[str]) -> None:
    shown = fails(capsys, 2, "nonsense")
    assert "There is no conversation 'nonsense'" in shown and "`tqchat --help` the commands" in shown
    with pytest.raises(SystemExit) as left:
        main(["serch", "fox"])
    assert left.value.code == 2
    assert "invalid choice: 'serch'" in capsys.readouterr().err
    assert "There is no conversation" in fails(capsys, 2, "open", "nonsense")
