"""Attached files: mentioned with @, read when the message is sent, folded on the screen."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.ui.conftest import OpenApp
from tqchat.ui.input import attachments
from tqchat.ui.input.attachments import Attachment, CannotAttach
from tqchat.ui.input.completion import completions, is_complete
from tqchat.ui.widgets.prompt.prompt import Prompt

NOTES = "# Notes\n\n```\ncode\n```\nthe red fox\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    (folder / "src").mkdir(parents=True)
    (folder / "notes.md").write_text(NOTES)
    (folder / "my file.txt").write_text("with a space")
    (folder / "src" / "fox.py").write_text("print('fox')\n")
    (folder / ".hidden").write_text("x")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("text", [NOTES, "", "`" * 9 + "\n", "\n\nAttached file x:\n```\ny\n```", "a\n\n"])
def test_split_undoes_join(text: str) -> None:
    files = [Attachment("a b.md", text), Attachment("src/fox.py", "print()\n")]
    said, found = attachments.split(attachments.join("Look at @x\n\nplease", files))
    assert said == "Look at @x\n\nplease"
    assert [(one.name, one.text) for one in found] == [
        (one.name, one.text.removesuffix("\n")) for one in files
    ]
    assert attachments.split("no files\n```\ncode\n```") == ("no files\n```\ncode\n```", [])


def test_files_mentioned_in_a_text_are_read(folder: Path) -> None:
    found = attachments.read_mentioned(
        'Compare @notes.md, @"my file.txt" and @src/fox.py. me@example.com @someone', folder
    )
    assert [one.name for one in found] == ["notes.md", "my file.txt", "src/fox.py"]
    (bracketed,) = attachments.read_mentioned("Sum them up (@notes.md).", folder)
    assert bracketed.text == NOTES
    assert attachments.read_mentioned("@notes.md @notes.md", folder)[0].text == NOTES


@pytest.mark.parametrize(
    "written", ['"my file.txt"', "'my file.txt'", "my\\ file.txt", "{folder}/my\\ file.txt"]
)
def test_a_name_is_written_as_terminals_write_it_when_a_file_is_dropped(folder: Path, written: str) -> None:
    text = f"Sum up @{written.format(folder=folder)} and say 'that'."
    (found,) = attachments.read_mentioned(text, folder)
    assert found.text == "with a space" and found.name.endswith("my file.txt")
    assert [one.attached for one in attachments.preview(text, folder)] == [True]


def test_an_apostrophe_or_a_backslash_alone_is_no_quotation(folder: Path) -> None:
    (folder / "a\\b.md").write_text("backslash")
    found = attachments.read_mentioned("@a\\b.md, @'tis what @someone's dog does", folder)
    assert [one.text for one in found] == ["backslash"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("@gone.md", "There is no file gone.md"),
        ("@src", "is a folder"),
        ("@picture.png", "is not a text file"),
        ("@latin1.txt", "latin1.txt is not UTF-8 text"),
        ("@big.txt", "at most 1.00 MB"),
        ("@" + "x/" * 5000, "There is no file"),
        ("@a\0b/c", "There is no file"),
    ],
)
def test_a_typed_name_that_cannot_be_attached_is_an_error_until_it_is_sent_as_words(
    folder: Path, text: str, says: str
) -> None:
    (folder / "latin1.txt").write_bytes("café".encode("latin-1"))
    (folder / "big.txt").write_bytes(b"x" * (attachments.MAX_FILE_BYTES + 1))
    with pytest.raises(CannotAttach, match=says):
        attachments.read_mentioned(text, folder)
    assert attachments.read_mentioned(text, folder, strict=False) == []
    assert attachments.read_mentioned(text, folder, known_text=f"pasted {text}") == []


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n"], ids=["LF", "CR", "CRLF"])
def test_line_breaks_of_files_are_newlines(folder: Path, line_break: str) -> None:
    (folder / "lines.txt").write_bytes(line_break.join(["one", "two", ""]).encode())
    assert attachments.read_mentioned("@lines.txt", folder)[0].text == "one\ntwo\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_text_of_other_programs_is_attached(folder: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (folder / "saved.txt").write_bytes(f"{mark}naïve\r\nfox\r\n".encode(encoding))
    assert attachments.read_file(folder, "saved.txt").text == "naïve\nfox\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o700, 0o644), (0o744, 0o644), (0o755, 0o600)])
def test_a_file_that_this_user_must_not_read_is_named_so(folder_mode: int, file_mode: int) -> None:
    # Below a folder that everyone may enter, which pytest's are not.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "closed").mkdir()
        (folder / "closed" / "fox.md").write_text("fox")
        (folder / "closed" / "fox.md").chmod(file_mode)
        (folder / "closed").chmod(folder_mode)
        os.seteuid(65534)
        try:
            with pytest.raises(CannotAttach, match=r"closed/fox.md cannot be read \(permission denied\)"):
                attachments.read_mentioned("Sum up @closed/fox.md", folder)
            is_complete("Sum up @closed/fox.md", [], folder)
        finally:
            os.seteuid(0)


def test_previews_say_what_sending_will_do(folder: Path) -> None:
    text = "See @notes.md, @picture.png, @src, @gone.md, @property, ann@example.org and @types/node"
    shown = [(one.label, one.attached) for one in attachments.preview(text, folder)]
    assert shown == [
        ("notes.md · 6 lines · 34 B", True),
        ("sent as words: picture.png is not a text file; only those can be attached.", False),
    ]
    (words,) = attachments.preview("@notes.md", folder, as_words={"notes.md"})
    assert not words.attached and "sent as words" in words.label
    assert attachments.read_mentioned("@notes.md", folder, as_words={"notes.md"}) == []


def test_an_empty_file_is_called_empty_before_it_is_sent_and_in_the_conversation(folder: Path) -> None:
    (folder / "none.txt").write_bytes(b"")
    assert [one.label for one in attachments.preview("@none.txt", folder)] == ["none.txt · empty"]
    sent = attachments.join("Sum up @none.txt", attachments.read_mentioned("@none.txt", folder))
    assert [file.label for file in attachments.split(sent)[1]] == ["none.txt · empty"]


def test_a_deleted_file_is_attached_as_it_was_before(folder: Path) -> None:
    earlier = [Attachment("gone.md", "as it was")]
    assert attachments.read_mentioned("@gone.md", folder, earlier) == earlier


def test_paths_complete(folder: Path) -> None:
    def labels(line: str) -> list[str]:
        return [completion.label for completion in completions(line, [], folder=folder)]

    assert labels("see @") == ["@src/", "@my file.txt", "@notes.md", "@picture.png"]
    assert labels("@NO") == ["@notes.md"] and labels("@.") == ["@.hidden"]
    assert labels("a@no") == [] and labels("@no such/") == []
    (quoted,) = completions("@my", [], folder=folder)
    assert (quoted.start, quoted.insert) == (1, '"my file.txt" ')
    (further,) = completions('see @"my f', [], folder=folder)
    assert (further.start, further.insert) == (5, '"my file.txt" ')
    assert is_complete("@notes.md", [], folder) and not is_complete("@not", [], folder)
    assert is_complete("hello", [], folder)


async def test_a_file_is_completed_attached_and_folded(open_app: OpenApp, folder: Path) -> None:
    async with open_app() as ui:
        await ui.pilot.press(*"See @no")
        await ui.shows("@notes.md")
        await ui.pilot.press("tab")
        prompt = ui.app.query_one(Prompt)
        await ui.until(lambda: prompt.text == "See @notes.md ")
        await ui.pilot.press("enter")
        await ui.until(lambda: ui.engine.sent())
        said = ui.engine.sent()[0].messages[-1].content
        assert said.startswith("See @notes.md\n\nAttached file notes.md:\n````md\n# Notes")
        ui.engine.reply("Seen.")
        await ui.shows("▸ notes.md · 6 lines")
        await ui.hides("the red fox")
        await ui.pilot.press("ctrl+up", "k", "space")
        await ui.shows("the red fox")
        (folder / "notes.md").unlink()
        await ui.pilot.press("e")
        await ui.until(lambda: prompt.text == "See @notes.md")
        await ui.pilot.press(*" now", "enter")
        await ui.until(lambda: len(ui.engine.sent()) == 2)
        assert "the red fox" in ui.engine.sent()[1].messages[-1].content, "as it was attached before"


async def test_a_file_that_changes_after_it_is_named_is_shown_as_it_will_be_sent(
    open_app: OpenApp, folder: Path
) -> None:
    async with open_app() as ui:
        ui.app.query_one(Prompt).put("Sum up @notes.md please")
        await ui.shows("▸ notes.md · 6 lines")
        (folder / "notes.md").write_text("the blue fox")
        await ui.shows("▸ notes.md · 1 line · 12 B")
        (folder / "notes.md").unlink()
        await ui.pilot.press("enter")
        await ui.shows("There is no file notes.md here. Enter again sends it as words.")
        await ui.hides("▸ notes.md")


async def test_enter_completes_until_the_text_is_complete(open_app: OpenApp, folder: Path) -> None:
    async with open_app() as ui:
        prompt = ui.app.query_one(Prompt)
        await ui.pilot.press(*"@src", "enter")
        await ui.until(lambda: prompt.text == "@src/")
        await ui.pilot.press("down", "enter")
        await ui.until(lambda: prompt.text == "@src/fox.py ")
        assert not ui.engine.sent()
        await ui.pilot.press("enter")
        await ui.until(lambda: ui.engine.sent())


async def test_arrows_select_a_completion_and_escape_closes_the_list(open_app: OpenApp) -> None:
    async with open_app() as ui:
        prompt = ui.app.query_one(Prompt)
        await ui.pilot.press(*"/s")
        await ui.shows("/scheme")
        await ui.pilot.press("down", "enter")
        await ui.until(lambda: prompt.text == "/search ")
        prompt.clear()
        await ui.pilot.press(*"/s", "escape")
        await ui.hides("/scheme")
        assert prompt.text == "/s"


async def test_a_missing_file_is_sent_as_text_on_the_second_enter(open_app: OpenApp, folder: Path) -> None:
    async with open_app() as ui:
        await ui.send("Ask @gone.md")
        await ui.shows("There is no file gone.md here.")
        assert ui.app.query_one(Prompt).text == "Ask @gone.md" and not ui.engine.sent()
        await ui.pilot.press("enter")
        await ui.until(lambda: ui.engine.sent())


async def test_a_folded_paste_is_deleted_at_once(open_app: OpenApp) -> None:
    from textual import events

    async with open_app() as ui:
        prompt = ui.app.query_one(Prompt)
        await ui.pilot.press(*"see ")
        prompt.post_message(events.Paste("line\n" * 400))
        await ui.shows("[pasted text 1")
        await ui.pilot.press("backspace")
        await ui.until(lambda: prompt.text == "see ")
        prompt.post_message(events.Paste("@notes.md\n" * 400))
        await ui.shows("[pasted text 2")
        await ui.pilot.press("enter")
        await ui.until(lambda: ui.engine.sent())
        assert "Attached file" not in ui.engine.sent()[0].messages[-1].content


async def test_a_very_long_unsent_text_returns_folded_and_complete(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("One", "Answer.")
        long = "word " * 10_000
        ui.app.query_one(Prompt).put(long)
        await ui.pilot.press("ctrl+n", "alt+down")
        await ui.shows("[pasted text")
        assert ui.app.query_one(Prompt).full_text == long
