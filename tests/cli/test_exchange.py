from __future__ import annotations

import io
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_cli import Captured, fails
from tqchat.cli import main
from tqchat.paths import Paths, locate
from tqchat.store.database import Database
from tqchat.text import with_closed_fence


@pytest.fixture
def talk(paths: Paths) -> str:
    """Id of a conversation with escape sequences in its title and messages."""
    with Database(paths.database) as database:
        conversation = database.create("Foxes\x1b]0;owned\x07", None, "auto")
        database.add_message(conversation.id, "user", "What is\x1b[2J a vixen? 狐狸")
        database.add_message(conversation.id, "assistant", "A *female* fox.\n")
    return conversation.id


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_search(capsys: Captured, talk: str) -> None:
    assert main(["search", "a", "vixen"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{talk[:8]}  2") and first.endswith("  Foxes")
    assert second == "    you: What is a vixen? 狐狸"
    assert main(["search", "fox"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["search", "fox", "--limit", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["search", "badger"]) == 1
    assert capsys.readouterr().out == "Nothing was found.\n"


def test_matches_are_bold_on_a_terminal(monkeypatch: pytest.MonkeyPatch, talk: str) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert main(["search", "VIXEN"]) == 0
    assert "What is a \x1b[1mvixen\x1b[22m? " in terminal.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert main(["search", "VIXEN"]) == 0
    assert "\x1b" not in terminal.getvalue()


def test_an_invalid_search(capsys: Captured, home: Path) -> None:
    assert "nothing to search" in fails(capsys, 2, "search", " ")
    assert "--limit" in fails(capsys, 2, "search", "x", "--limit", "0")
    assert main(["search", "x"]) == 1
    assert not home.exists()


def test_export_as_markdown(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, talk: str, tmp_path: Path
) -> None:
    assert main(["export", talk[:6]]) == 0
    piped = capsys.readouterr().out
    assert piped.startswith("# Foxes\n\n*2") and "## You\n\nWhat is\x1b[2J a vixen? 狐狸\n" in piped
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert main(["export", talk]) == 0
    assert "What is a vixen? 狐狸\n" in terminal.getvalue() and "\x1b" not in terminal.getvalue()
    monkeypatch.undo()
    file = tmp_path / "talk.md"
    file.write_text("old")
    monkeypatch.setenv("TQCHAT_HOME", str(tmp_path / "home"))
    assert "--force" in fails(capsys, 1, "export", "--all", "-o", str(file))
    assert file.read_text() == "old"
    assert main(["export", "--all", "--force", "-o", str(file)]) == 0
    assert file.read_text("utf-8") == piped
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_export_and_import_all(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, talk: str, paths: Paths, tmp_path: Path
) -> None:
    file = tmp_path / "all.json"
    assert main(["export", "--all", "-o", str(file)]) == 0
    assert main(["export", talk, "--format", "json"]) == 0
    printed = capsys.readouterr().out
    assert printed == file.read_text("ascii") and "\x1b" not in printed
    assert json.loads(printed)["conversations"][0]["messages"][0]["content"] == "What is\x1b[2J a vixen? 狐狸"

    assert main(["import", str(file)]) == 0
    assert "already here" in capsys.readouterr().out
    monkeypatch.setenv("TQCHAT_HOME", str(tmp_path / "another"))
    assert main(["import", str(file)]) == 0
    assert capsys.readouterr().out == f"{talk[:8]}  Foxes\n1 imported, 0 already here.\n"
    assert main(["export", "--all", "--format", "json"]) == 0
    assert capsys.readouterr().out == printed
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(printed.encode())))
    assert main(["import", "-"]) == 0
    assert capsys.readouterr().out.endswith("0 imported, 1 already here.\n")


def test_failing_exports_and_imports(capsys: Captured, paths: Paths, tmp_path: Path) -> None:
    assert "no conversations to export" in fails(capsys, 1, "export", "--all")
    assert "tqchat ls" in fails(capsys, 2, "export", "abc")
    with Database(paths.database) as database:
        database.create("t", None, "fp16")
    assert "cannot be written" in fails(capsys, 1, "export", "--all", "-o", str(tmp_path / "no" / "x"))
    assert "cannot be read (no such file" in fails(capsys, 1, "import", str(tmp_path / "none"))
    assert "holds no conversations" in fails(capsys, 2, "import", str(tmp_path))
    (tmp_path / "bad.json").write_text('{"a": "\x1b"}')
    assert "Nothing was imported" in fails(capsys, 2, "import", str(tmp_path / "bad.json"))
    for arguments in (["export"], ["export", "x", "--all"], ["export", "x", "--format", "pdf"], ["import"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
    capsys.readouterr()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_export_to_a_full_disk_is_reported(talk: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tqchat", "export", talk, "-o", "/dev/full"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr == "tqchat: /dev/full cannot be written (no space left on device).\n"


@pytest.mark.parametrize(
    "reply",
    [
        "Cut off:\n```python\ndef fox():",
        "````md\n```py\nprint()\n```\n## You\n````\nNested.",
        "~~~\n```\n~~~\nDone.",
        "```a``` is code in a line.",
        "Longer closes:\n```\ncode\n````\nSo.",
        "1. A list\n   ```\n   code",
    ],
)
def test_code_blocks_in_a_markdown_export_end_with_their_message(
    capsys: Captured, paths: Paths, tmp_path: Path, reply: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["What is a fox?", reply, "And a vixen?", "A female fox."]
    with Database(paths.database) as database:
        talk = database.create("Foxes", None, "auto")
        for index, text in enumerate(said):
            database.add_message(talk.id, "assistant" if index % 2 else "user", text)
    file = tmp_path / "foxes.md"
    assert main(["export", talk.id, "-o", str(file)]) == 0
    monkeypatch.setenv("TQCHAT_HOME", str(tmp_path / "other"))
    assert main(["import", str(file)]) == 0
    capsys.readouterr()
    with Database(locate().database) as database:
        found = [one.content for one in database.messages(database.conversations()[0].id)]
    assert found == [with_closed_fence(text) for text in said]
    assert found[1].startswith(reply)
