from __future__ import annotations

import stat
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from tqchat import settings
from tqchat.paths import Paths, bundled
from tqchat.settings import Settings, SettingsError, State, read_config


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


HOSTILE = [
    b"[" * 100_000,
    b"theme = 0x" + b"f" * 5000,
    b"theme = " + b"9" * 5000,
    b"temperature = nan\nseed = 1e400\nmemory_budget = inf\nkeys = []",
    b"scheme = 'turbo" + b"9" * 5000 + b"'\nmodel_folders = [[[]]]",
    b"theme = '\\u001b]52;c;eA==\\u0007'\nkeys.a.b.c = 1",
    "theme = 'x'".encode("utf-16"),
    b"\x00" * 100,
    b"\n".join(b"key%d = 1" % number for number in range(5000)),
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_any_content_gives_sentences_and_usable_settings(paths: Paths, content: bytes) -> None:
    paths.config_file.write_bytes(content)
    used, problems = read_config(paths)
    assert problems or used.theme != Settings().theme
    assert all("\n" not in said and "\x1b" not in said and len(said) < 1000 for said in problems)
    paths.state_file.write_bytes(content)
    state, _ = State.read(paths)
    Settings().with_values(state.settings)
    kept = paths.state_file.read_bytes()
    assert State(sidebar=False).save(paths) and not State.load(paths).sidebar
    others = [file.read_bytes() for file in paths.state_dir.iterdir() if file != paths.state_file]
    assert kept in others, "what was in the file is still there"


def test_all_problems_are_named_and_the_other_values_used(paths: Paths) -> None:
    sentence = problem(paths, "max_tokens = 0\ntop_p = 7\nzzz = 1\ntemperature = 0.5")
    for word in ("max_tokens is 0", "top_p is 7", "no setting 'zzz'"):
        assert word in sentence
    used, problems = read_config(paths)
    assert used == Settings(temperature=0.5) and len(problems) == 3


def test_the_state_keeps_what_this_version_does_not_know(paths: Paths) -> None:
    paths.state_file.write_text(
        'later = "x"\nconversation = "old"\n\n[settings]\nnew_setting = 1\ntemperature = 99\ntheme = "mine"\n'
    )
    state, problem = State.read(paths)
    assert problem is not None and "temperature" in problem
    replace(state, conversation="new", settings={"seed": 3}).save(paths, state)
    assert tomllib.loads(paths.state_file.read_text()) == {
        "later": "x",
        "conversation": "new",
        "settings": {"new_setting": 1, "temperature": 99, "seed": 3},
    }


def test_two_processes_keep_each_others_changes(paths: Paths) -> None:
    start = State()
    State(settings={"theme": "mine"}).save(paths, start)
    State(sidebar=False).save(paths, start)
    assert State.load(paths) == State(sidebar=False, settings={"theme": "mine"})


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
