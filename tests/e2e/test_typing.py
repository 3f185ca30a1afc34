"""Typing in a pseudo-terminal: bursts, names after an @, Ctrl+C, keys for keyboards without Alt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.terminal import Terminal, stored_messages
from tqchat.paths import Paths
from tqchat.ui.input.attachments import MAX_FILE_BYTES

pytestmark = pytest.mark.slow

ONLY_WORDS = [
    '@app.route("/items")\ndef items():\n    return []',
    "@pytest.fixture\ndef x(): ...",
    "npm install @types/node @babel/core",
    "write to ann@example.org or to @ann",
    "@src def x(): ...",
    "see @gone.md",
    "the data in @big.csv are too many",
]


def paste(text: str) -> str:
    return f"\x1b[200~{text}\x1b[201~"


def sent(paths: Paths) -> list[str]:
    return [message.content for message in stored_messages(paths) if message.role == "user"]


@pytest.fixture
def folder(tmp_path: Path, paths: Paths) -> Path:
    paths.config_file.write_text("max_tokens = 1\n")
    folder = tmp_path / "here"
    (folder / "src" / "deep").mkdir(parents=True)
    (folder / "src" / "deep" / "fox_den.py").write_text("print('fox')\n")
    (folder / "built").mkdir()
    (folder / "built" / "fox_den.js").write_text("fox()")
    (folder / ".gitignore").write_text("/built/\n")
    (folder / "notes.md").write_text("the red fox\n")
    (folder / "big.csv").write_text("1" * (MAX_FILE_BYTES + 1))
    return folder


def test_typing_and_pasting(paths: Paths, folder: Path, llama_folder: Path) -> None:
    with Terminal("--model", str(llama_folder), folder=folder) as terminal:
        terminal.sees("Ask something")
        for number, text in enumerate(ONLY_WORDS, 1):
            terminal.press("ctrl+n", paste(text.replace("\n", "\r")), "enter")
            terminal.until(lambda number=number: len(sent(paths)) == number)
        assert sorted(sent(paths)) == sorted(ONLY_WORDS), "one Enter, no file attached"

        # A file is shown before it is sent, and only then.
        terminal.press("ctrl+n", paste("see @notes.md"))
        terminal.sees("▸ notes.md · 1 line · 12 B")
        terminal.press("enter")
        terminal.until(lambda: any("the red fox" in text for text in sent(paths)))
        terminal.press("ctrl+n", "the @big.csv ", "enter")
        terminal.sees("Enter again sends")
        terminal.press("enter")
        terminal.until(lambda: "the @big.csv " in sent(paths))

        # Fuzzy completion below the start folder, without what .gitignore excludes.
        terminal.press("ctrl+n", "see @fxden")
        terminal.sees("@src/deep/fox_den.py")
        assert "built" not in terminal.text()
        terminal.press("\t")
        terminal.sees("▸ src/deep/fox_den.py · 1 line")

        # A burst keeps its order, whatever kind of key is in it; Ctrl+C clears, and undo brings it back.
        terminal.press("ctrl+c")
        terminal.sees("Cleared")
        terminal.sees_no("fox_den")
        terminal.press("abc\x7f\x7f\x7fxyz\x1b[D\x1b[D-\x01=\rnext\x0elast")
        terminal.until(lambda: "=x-yz" in sent(paths))
        terminal.sees("last")
        terminal.press("ctrl+c", "\x1a")  # Ctrl+Z
        terminal.sees_no("Write a message")
        assert "last" in terminal.text()

        # Ctrl+X and a letter are Alt and that letter.
        terminal.press("ctrl+x", "m")
        terminal.sees("The context holds")
        terminal.press("escape")
        terminal.sees_no("The context holds")
        terminal.press("ctrl+c", "ctrl+c")
        terminal.sees("Quit tqchat?")
        terminal.press("enter")
        assert terminal.ends() == 0
    assert "next" not in sent(paths), "typed behind Enter, for the next message"


@pytest.mark.parametrize("key", ["\n", "\x1b\r", "\x1b[13;2u", "\x1b[27;2;13~"])
def test_every_form_of_a_new_line_key_starts_a_line(
    paths: Paths, folder: Path, llama_folder: Path, key: str
) -> None:
    with Terminal("--model", str(llama_folder), folder=folder) as terminal:
        terminal.sees("Ask something")
        terminal.press("one", key, "two")
        terminal.sees("two")
        terminal.press("enter")
        terminal.until(lambda: sent(paths))
    assert sent(paths) == ["one\ntwo"]


def test_joiners_spaces_and_new_emoji_that_are_typed_are_sent(paths: Paths, llama_folder: Path) -> None:
    paths.config_file.write_text("max_tokens = 1\n")
    text = "می\u200cخواهم 全角\u3000の 10\u202f000\xa0€ 👩\u200d💻 \U0001fae9"
    with Terminal("--model", str(llama_folder)) as terminal:
        terminal.sees("Ask something")
        terminal.press(text, "enter")
        terminal.until(lambda: sent(paths) == [text])


def test_the_frame_of_the_prompt_stays_straight_beside_joined_emoji(paths: Paths, llama_folder: Path) -> None:
    with Terminal("--model", str(llama_folder), columns=60, rows=20) as terminal:
        terminal.sees("Ask something")
        terminal.press(paste("👍🏽 ❤\ufe0f 👨\u200d👩\u200d👧 1\ufe0f\u20e3 a\u200bb"), " end")
        terminal.sees("end")
        assert terminal.columns("│") == {1, 58}
        # The cursor on a joined emoji, and a line that gets shorter.
        terminal.press(*["\x1b[D"] * 11, "\x7f", "!")
        terminal.sees("!")
        assert terminal.columns("│") == {1, 58}


def test_a_start_folder_that_is_deleted_only_hides_its_files(
    paths: Paths, folder: Path, llama_folder: Path
) -> None:
    with Terminal("--model", str(llama_folder), folder=folder) as terminal:
        terminal.sees("Ask something")
        shutil.rmtree(folder)
        terminal.process.send("Sum up @notes.md")
        terminal.press("enter")
        terminal.sees("There is no file notes.md here")
        terminal.press("enter")
        terminal.until(lambda: sent(paths) == ["Sum up @notes.md"])
        terminal.quit()
