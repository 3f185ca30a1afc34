"""Reading of untrusted small files, and writing that loses nothing."""

from __future__ import annotations

import os
import socket
import stat
import tomllib
from pathlib import Path

import pytest

from tqchat import files
from tqchat.files import NotWritten, Unreadable, read_bytes, read_json, read_toml, update_toml


def special_files(folder: Path) -> list[Path]:
    """A pipe, a socket, a folder, a device, a loop of links, and links to the first four."""
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(folder)  # the path of a socket is limited to about 100 characters
        try:
            listening.bind("socket")
        finally:
            os.chdir(here)
    (folder / "folder").mkdir()
    found = [folder / "pipe", folder / "socket", folder / "folder", Path("/dev/zero")]
    for number, target in enumerate(list(found)):
        link = folder / f"link{number}"
        link.symlink_to(target)
        found.append(link)
    (folder / "loop").symlink_to(folder / "loop")
    return [*found, folder / "loop"]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    for path in special_files(tmp_path):
        for read in (lambda p: read_bytes(p, 10), read_toml, read_json):
            with pytest.raises(Unreadable, match="cannot be read"):
                read(path)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "nothing", 10)


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 11)
    with pytest.raises(Unreadable, match="too large"):
        read_bytes(file, 10)
    assert read_bytes(file, 11) == b"x" * 11
    os.truncate(file, 1 << 40)  # sparse
    with pytest.raises(Unreadable, match="too large"):
        read_toml(file)


BAD_TOML = {
    "not toml": b"a = [",
    "not text": b"\xff\xfe\x00",
    "utf-16": "a = 1".encode("utf-16"),
    "nested arrays": b"a = " + b"[" * 100_000,
    "nested tables": b"a = " + b"{a=" * 900 + b"1" + b"}" * 900,
    "a key of many parts": b"a." * 200_000 + b"a = 1",
    "a quoted key of many parts": b"'a' . " * 100_000 + b"a = 1",
    "a number of 5,000 digits": b"a = " + b"9" * 5000,
    "no such day": b"a = 2026-02-31",
    "NUL": b"a = 1\0",
}


@pytest.mark.parametrize("content", BAD_TOML.values(), ids=BAD_TOML)
def test_damaged_toml_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.toml"
    file.write_bytes(content)
    with pytest.raises(Unreadable) as raised:
        read_toml(file)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(Unreadable):
        update_toml(file, lambda table: table.update(a=1))
    assert file.read_bytes() == content, "what cannot be read is not overwritten"


@pytest.mark.parametrize("content", [b"", b"[", b"[" * 100_000, b"9" * 5000, b"[]", b'"\xff"', b"nan"])
def test_damaged_json_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with pytest.raises(Unreadable, match=r"no valid JSON|no JSON table"):
        read_json(file)


def test_an_update_keeps_what_it_does_not_change(tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text('new = "of a later version"\n\n[table]\nx = [\n    1,\n]\n')
    assert update_toml(file, lambda table: table.update(mine=1)) is None
    assert tomllib.loads(file.read_text()) == {"new": "of a later version", "table": {"x": [1]}, "mine": 1}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_with_comments_is_copied_before_it_is_rewritten(tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    written = "# mine\na = 1\n"
    file.write_text(written)
    copy = update_toml(file, lambda table: table.update(b=2))
    assert copy is not None and copy.read_text() == written
    assert tomllib.loads(file.read_text()) == {"a": 1, "b": 2}
    assert update_toml(file, lambda table: table.update(b=3)) is None


def test_a_damaged_file_is_kept_under_another_name(tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    for number in range(3):
        file.write_text(f"a = [ # {number}")
        kept = update_toml(file, lambda table: table.update(b=2), replace_damaged=True)
        assert kept is not None and kept.read_text() == f"a = [ # {number}"
        assert tomllib.loads(file.read_text()) == {"b": 2}
    assert len(list(tmp_path.iterdir())) == 4


def test_a_link_to_a_file_stays_one(tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    real, link = tmp_path / "dotfiles" / "real.toml", tmp_path / "link.toml"
    real.write_text("a = 1\n")
    link.symlink_to(real)
    update_toml(link, lambda table: table.update(b=2))
    assert link.is_symlink() and tomllib.loads(real.read_text()) == {"a": 1, "b": 2}


def test_a_failed_write_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.toml"
    file.write_text("a = 1\n")

    def fail(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_atomically", fail)
    with pytest.raises(NotWritten, match="no space left"):
        update_toml(file, lambda table: table.clear())
    assert file.read_text() == "a = 1\n"


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    for mask in (0, 0o777):
        before = os.umask(mask)
        try:
            files.write_atomically(tmp_path / "file", b"x")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
