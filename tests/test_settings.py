from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tqchat import settings
from tqchat.paths import Paths, bundled
from tqchat.settings import Settings, SettingsError, State


def write(paths: Paths, text: str) -> None:
    paths.config_file.write_text(text, "utf-8")


def problem(paths: Paths, text: str) -> str:
    write(paths, text)
    with pytest.raises(SettingsError) as raised:
        settings.load(paths)
    assert raised.value.exit_code == 2
    assert str(paths.config_file) in str(raised.value)
    return str(raised.value)


def test_without_a_file_the_defaults_apply(paths: Paths) -> None:
    assert settings.load(paths) == Settings()


def test_the_default_theme_is_bundled() -> None:
    assert (bundled("themes") / f"{Settings().theme}.toml").is_file()


def test_values_are_loaded_and_become_sampling(paths: Paths) -> None:
    write(
        paths,
        """
        theme = "mine"
        model = "some/where"
        scheme = "affine8"
        system_prompt = "Be brief."
        max_tokens = 50
        temperature = 1
        top_k = 0
        """,
    )
    loaded = settings.load(paths)
    assert (loaded.theme, loaded.model, loaded.scheme) == ("mine", "some/where", "affine8")
    assert loaded.system_prompt == "Be brief."
    assert loaded.sampling.max_tokens == 50
    assert loaded.sampling.temperature == 1.0
    assert loaded.sampling.top_k == 0
    assert loaded.sampling.top_p is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('scheme = "turbo9"', ["scheme is 'turbo9'", "fp16", "turbo0v4"]),
        ("max_tokens = 0", ["max_tokens is 0", "a whole number from 1"]),
        ("max_tokens = true", ["max_tokens is true"]),
        ("max_tokens = 1.5", ["max_tokens is 1.5"]),
        ('temperature = "hot"', ["temperature is 'hot'", "a number from 0 to 5"]),
        ("temperature = nan", ["temperature is nan"]),
        ("top_p = 0", ["top_p is 0", "above 0 and at most 1"]),
        ('model = ""', ["model is ''", "folder or a Hugging Face repo id"]),
        ('tempurature = "1"', ["no setting 'tempurature'", "'temperature'"]),
        ("zzz = 1", ["no setting 'zzz'", "the settings are theme, keys"]),
        ("[theme]\nname = 1", ["theme is {'name': 1}"]),
        ("theme = 1 2", ["not valid TOML", "line 1"]),
    ],
)
def test_an_invalid_value_is_named_with_the_allowed_ones(paths: Paths, line: str, words: list[str]) -> None:
    sentence = problem(paths, line)
    for word in words:
        assert word in sentence


def test_a_file_that_is_not_utf8_is_named(paths: Paths) -> None:
    paths.config_file.write_bytes(b"theme = '\xff'")
    with pytest.raises(SettingsError, match="UTF-8"):
        settings.load(paths)


def test_a_folder_in_place_of_the_file_is_named(paths: Paths) -> None:
    paths.config_file.mkdir()
    with pytest.raises(SettingsError, match="cannot be read"):
        settings.load(paths)


def test_state_survives_a_restart(paths: Paths) -> None:
    state = State(conversation="abc", sidebar=False, settings={"theme": "mine", "temperature": 0.5})
    assert state.save(paths)
    assert State.load(paths) == state
    assert stat.S_IMODE(paths.state_file.stat().st_mode) == 0o600


def test_damaged_state_is_ignored(paths: Paths) -> None:
    for content in (b"", b"\x00\x00\x00", b"conversation = ", b'conversation = 7\nsidebar = "no"\nother = 1'):
        paths.state_file.write_bytes(content)
        assert State.load(paths) == State()


def test_state_that_cannot_be_written_is_not_an_error(paths: Paths) -> None:
    paths.state_dir.rmdir()
    paths.state_dir.write_text("in the way")
    assert not State(conversation="abc").save(paths)
    assert State.load(paths) == State()


def test_a_failed_write_keeps_the_old_state_and_leaves_no_temporary_file(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    State(conversation="old").save(paths)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        assert not State(conversation="new").save(paths)
    assert State.load(paths).conversation == "old"
    assert list(paths.state_dir.iterdir()) == [paths.state_file]
