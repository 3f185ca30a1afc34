"""Files that go along with a message: named with @, read when it is sent, folded where they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ui.conftest import Open
from tqchat.ui.input import attachments
from tqchat.ui.input.attachments import Attachment, CannotAttach
from tqchat.ui.input.completion import is_whole, offers
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
def test_a_message_and_its_files_come_apart_again(text: str) -> None:
    files = [Attachment("a b.md", text), Attachment("src/fox.py", "print()\n")]
    said, found = attachments.split(attachments.join("Look at @x\n\nplease", files))
    assert said == "Look at @x\n\nplease"
    assert [(one.name, one.text) for one in found] == [
        (one.name, one.text.removesuffix("\n")) for one in files
    ]
    assert attachments.split("no files\n```\ncode\n```") == ("no files\n```\ncode\n```", [])


def test_files_are_found_where_a_text_names_them(folder: Path) -> None:
    found = attachments.named(
        'Compare @notes.md, @"my file.txt" and @src/fox.py. me@example.com @someone', folder
    )
    assert [one.name for one in found] == ["notes.md", "my file.txt", "src/fox.py"]
    assert attachments.named("@notes.md @notes.md", folder)[0].text == NOTES


@pytest.mark.parametrize(
    ("text", "says", "may_insist"),
    [
        ("@gone.md", "There is no file gone.md", True),
        ("@src", "is a folder", True),
        ("@picture.png", "is no text", False),
        ("@big.txt", "at most 1.00 MB", False),
        ("@" + "x/" * 5000, "There is no file", True),
        ("@a\0b/c", "There is no file", True),
    ],
)
def test_what_cannot_go_along_is_said(folder: Path, text: str, says: str, may_insist: bool) -> None:
    (folder / "big.txt").write_bytes(b"x" * (attachments.MAX_FILE_BYTES + 1))
    with pytest.raises(CannotAttach, match=says) as error:
        attachments.named(text, folder)
    assert error.value.may_insist is may_insist


def test_a_file_that_is_gone_goes_along_as_it_was(folder: Path) -> None:
    earlier = [Attachment("gone.md", "as it was")]
    assert attachments.named("@gone.md", folder, earlier) == earlier


def test_paths_complete(folder: Path) -> None:
    def labels(line: str) -> list[str]:
        return [offer.label for offer in offers(line, [], folder=folder)]

    assert labels("see @") == ["@src/", "@my file.txt", "@notes.md", "@picture.png"]
    assert labels("@NO") == ["@notes.md"] and labels("@.") == ["@.hidden"]
    assert labels("a@no") == [] and labels("@no such/") == []
    (quoted,) = offers("@my", [], folder=folder)
    assert (quoted.start, quoted.insert) == (1, '"my file.txt" ')
    (further,) = offers('see @"my f', [], folder=folder)
    assert (further.start, further.insert) == (5, '"my file.txt" ')
    assert is_whole("@notes.md", [], folder) and not is_whole("@not", [], folder)
    assert is_whole("hello", [], folder)


async def test_a_file_is_completed_attached_and_folded(stage: Open, folder: Path) -> None:
    async with stage() as it:
        await it.pilot.press(*"See @no")
        await it.sees("@notes.md")
        await it.pilot.press("tab")
        prompt = it.app.query_one(Prompt)
        await it.until(lambda: prompt.text == "See @notes.md ")
        await it.pilot.press("enter")
        await it.until(lambda: it.engine.sent())
        said = it.engine.sent()[0].messages[-1].content
        assert said.startswith("See @notes.md\n\nAttached file notes.md:\n````md\n# Notes")
        it.engine.reply("Seen.")
        await it.sees("▸ notes.md · 6 lines")
        await it.sees_no("the red fox")
        await it.pilot.press("ctrl+up", "k", "space")
        await it.sees("the red fox")
        (folder / "notes.md").unlink()
        await it.pilot.press("e")
        await it.until(lambda: prompt.text == "See @notes.md")
        await it.pilot.press(*" now", "enter")
        await it.until(lambda: len(it.engine.sent()) == 2)
        assert "the red fox" in it.engine.sent()[1].messages[-1].content, "as it was attached before"


async def test_enter_takes_what_is_offered_until_it_is_whole(stage: Open, folder: Path) -> None:
    async with stage() as it:
        prompt = it.app.query_one(Prompt)
        await it.pilot.press(*"@src", "enter")
        await it.until(lambda: prompt.text == "@src/")
        await it.pilot.press("down", "enter")
        await it.until(lambda: prompt.text == "@src/fox.py ")
        assert not it.engine.sent()
        await it.pilot.press("enter")
        await it.until(lambda: it.engine.sent())


async def test_arrows_choose_and_escape_closes(stage: Open) -> None:
    async with stage() as it:
        prompt = it.app.query_one(Prompt)
        await it.pilot.press(*"/s")
        await it.sees("/scheme")
        await it.pilot.press("down", "enter")
        await it.until(lambda: prompt.text == "/search ")
        prompt.clear()
        await it.pilot.press(*"/s", "escape")
        await it.sees_no("/scheme")
        assert prompt.text == "/s"


async def test_a_name_that_leads_nowhere_is_sent_only_when_meant(stage: Open, folder: Path) -> None:
    async with stage() as it:
        await it.ask("Ask @gone.md")
        await it.sees("There is no file gone.md here.")
        assert it.app.query_one(Prompt).text == "Ask @gone.md" and not it.engine.sent()
        await it.pilot.press("enter")
        await it.until(lambda: it.engine.sent())


async def test_a_folded_paste_is_deleted_as_one(stage: Open) -> None:
    from textual import events

    async with stage() as it:
        prompt = it.app.query_one(Prompt)
        await it.pilot.press(*"see ")
        prompt.post_message(events.Paste("line\n" * 400))
        await it.sees("[pasted text 1")
        await it.pilot.press("backspace")
        await it.until(lambda: prompt.text == "see ")
        prompt.post_message(events.Paste("@notes.md\n" * 400))
        await it.sees("[pasted text 2")
        await it.pilot.press("enter")
        await it.until(lambda: it.engine.sent())
        assert "Attached file" not in it.engine.sent()[0].messages[-1].content


async def test_a_very_long_draft_comes_back_folded_and_whole(stage: Open) -> None:
    async with stage() as it:
        await it.chat("One", "Answer.")
        long = "word " * 10_000
        it.app.query_one(Prompt).put(long)
        await it.pilot.press("ctrl+n", "alt+down")
        await it.sees("[pasted text")
        assert it.app.query_one(Prompt).whole == long
