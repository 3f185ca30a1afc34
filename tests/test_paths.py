from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tqchat import paths


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_home_variable_moves_every_location(home: Path) -> None:
    places = paths.locate()
    for place in (
        places.config_file,
        places.themes,
        places.state_file,
        places.database,
        places.caches,
        places.log_dir,
    ):
        assert place.is_relative_to(home)


def test_a_relative_or_tilde_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TQCHAT_HOME", "~/chat")
    assert paths.locate().data_dir == tmp_path / "chat" / "data"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQCHAT_HOME", "chat")
    assert paths.locate().data_dir == tmp_path / "chat" / "data"


def test_without_the_variable_platform_folders_are_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TQCHAT_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "d"))
    assert paths.locate().config_file == tmp_path / "c" / "tqchat" / "config.toml"
    assert paths.locate().database == tmp_path / "d" / "tqchat" / "tqchat.db"


def test_locate_creates_nothing(home: Path) -> None:
    paths.locate()
    assert not home.exists()


def test_ensure_creates_private_folders(home: Path) -> None:
    previous = os.umask(0)
    try:
        (home / "data").mkdir(parents=True, mode=0o755)
        paths.locate().ensure()
    finally:
        os.umask(previous)
    places = paths.locate()
    for folder in (places.config_dir, places.state_dir, places.data_dir, places.caches, places.log_dir):
        assert mode(folder) == 0o700


@pytest.mark.parametrize("mask", [0, 0o077, 0o277, 0o777])
def test_new_folders_are_private_whatever_the_umask(home: Path, mask: int) -> None:
    previous = os.umask(mask)
    try:
        paths.make_private_folder(home / "data" / "leases")
        paths.locate().ensure()
    finally:
        os.umask(previous)
    assert {mode(folder) for folder in (home, *home.rglob("*"))} == {0o700}


def test_an_existing_home_is_restricted_unless_it_holds_other_files(home: Path) -> None:
    home.mkdir()
    home.chmod(0o755)
    paths.locate().ensure()
    assert mode(home) == 0o700
    home.chmod(0o755)
    (home / "of the user").touch()
    paths.locate().ensure()
    assert mode(home) == 0o755 and mode(home / "data") == 0o700


def test_a_home_of_a_user_that_does_not_exist_is_a_folder_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQCHAT_HOME", "~nosuch/x")
    assert paths.locate().data_dir == tmp_path / "~nosuch" / "x" / "data"


def test_folders_that_the_app_can_do_without_are_reported(home: Path) -> None:
    places = paths.locate()
    places.ensure()
    for folder in (places.log_dir, places.state_dir):
        folder.rmdir()
        folder.write_text("in the way")
    said = "\n".join(places.ensure())
    assert str(places.log_dir) in said and str(places.state_dir) in said
    places.data_dir.rmdir()
    places.data_dir.write_text("in the way")
    with pytest.raises(paths.UnusableFolder):
        places.ensure()


def test_a_file_in_place_of_a_folder_is_named(home: Path) -> None:
    home.write_text("in the way")
    with pytest.raises(paths.UnusableFolder, match=r"config.*cannot be used.*TQCHAT_HOME"):
        paths.locate().ensure()


def test_bundled_resources_exist() -> None:
    assert (paths.bundled("starter") / "config.json").is_file()
    assert list(paths.bundled("themes").glob("*.toml"))


def test_resources_inside_the_package_take_precedence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tqchat" / "themes").mkdir(parents=True)
    (tmp_path / "themes").mkdir()
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "tqchat")
    assert paths.bundled("themes") == tmp_path / "tqchat" / "themes"
    with pytest.raises(paths.MissingResource, match="starter"):
        paths.bundled("starter")
