"""Settings: the schema, the settings screen, and settings changed in the app."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList

from tests.ui.conftest import OpenApp, RunningApp
from tqchat import settings
from tqchat.paths import Paths
from tqchat.settings import SETTINGS, SETTINGS_BY_NAME, Settings, State
from tqchat.ui.screens.dialog import Choose
from tqchat.ui.screens.settings import SettingsScreen
from tqchat.ui.screens.theme import ThemePicker


def test_every_setting_is_in_the_schema_with_a_sentence_and_its_default() -> None:
    assert [setting.name for setting in SETTINGS] == [field.name for field in fields(Settings)]
    for setting in SETTINGS:
        assert setting.help.endswith(".") and setting.default_text and setting.applies
        default = getattr(Settings(), setting.name)
        if default not in (None, (), {}):
            assert setting.accepts(default) and setting.default_text == setting.format(default)


@pytest.mark.parametrize("setting", [one for one in SETTINGS if one.kind != "keys"], ids=lambda one: one.name)
def test_a_formatted_value_parses_to_itself(setting: settings.Setting) -> None:
    examples = {"scheme": "turbo4", "folders": ["~/a", "/b c"], "integer": 7, "number": 0.5, "flag": True}
    examples["choice"] = "open" if setting.name == "show_thinking" else "off"
    value = examples.get(setting.kind, "some words")
    assert setting.parse(setting.format(value)) == value


@pytest.mark.parametrize(
    ("name", "text"), [("temperature", "hot"), ("max_tokens", "1.5"), ("scheme", "turbo9"), ("top_p", "0")]
)
def test_an_invalid_value_is_refused_with_the_allowed_ones(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=SETTINGS_BY_NAME[name].allowed[:20]):
        SETTINGS_BY_NAME[name].parse(text)


async def open_setting(ui: RunningApp, name: str) -> None:
    """Open the settings screen with the cursor on a setting."""
    await ui.pilot.press("ctrl+s")
    await ui.until(lambda: isinstance(ui.app.screen, SettingsScreen))
    options = ui.app.screen.query_one(OptionList)
    options.highlighted = options.get_option_index(name)
    await ui.shows(SETTINGS_BY_NAME[name].help[:40])


async def enter_value(ui: RunningApp, text: str) -> None:
    await ui.pilot.press("enter")
    box = ui.app.screen.query_one("#value", Input)
    await ui.until(lambda: box.has_focus)
    box.value = text
    await ui.pilot.press("enter")


async def test_a_setting_is_changed_saved_and_reset(open_app: OpenApp, paths: Paths) -> None:
    paths.config_file.write_text("temperature = 0.9\n")
    async with open_app(settings=settings.load_config(paths)) as ui:
        await open_setting(ui, "temperature")
        await ui.shows("config.toml")
        await enter_value(ui, "9")
        await ui.shows("It must be a number from 0 to 5.")
        await ui.pilot.press("escape")
        await enter_value(ui, "0.2")
        await ui.shows("set here")
        assert ui.app.chat.sampling.defaults.temperature == 0.2
        assert settings.load(paths).temperature == 0.2, "commands see it as well"
        assert paths.config_file.read_text() == "temperature = 0.9\n"
    async with open_app(settings=settings.load_config(paths)) as ui:
        assert ui.app.chat.sampling.defaults.temperature == 0.2
        await open_setting(ui, "temperature")
        await ui.pilot.press("backspace")
        await ui.hides("set here")
        assert ui.app.chat.sampling.defaults.temperature == 0.9
    assert State.load(paths).settings == {}


@pytest.mark.parametrize(
    ("name", "missing", "says"),
    [
        ("model", "./no-such-model", "There is no model folder './no-such-model'"),
        ("draft", "banana", "There is no model folder 'banana'"),
        ("adapter", "~/no-such-adapter", "There is no folder '~/no-such-adapter'."),
        ("model_folders", ", ".join(("{here}", "/no/such/folder")), "There is no folder '/no/such/folder'."),
    ],
)
async def test_models_and_folders_that_do_not_exist_are_refused(
    open_app: OpenApp, paths: Paths, tmp_path: Path, name: str, missing: str, says: str
) -> None:
    async with open_app(settings=settings.load_config(paths)) as ui:
        await open_setting(ui, name)
        await enter_value(ui, missing.format(here=tmp_path))
        await ui.shows(says)
        await ui.pilot.press("escape")
        await enter_value(ui, "auto" if name == "draft" else str(tmp_path))
        await ui.shows("set here")
        await enter_value(ui, "")
        await ui.hides("set here")
    assert State.load(paths).settings == {}


async def test_the_scheme_of_new_conversations_is_chosen_from_a_list(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Yes.")
        await open_setting(ui, "scheme")
        await ui.pilot.press("enter")
        await ui.until(lambda: isinstance(ui.app.screen, Choose))
        await ui.pilot.press("home", "enter")
        await ui.until(lambda: ui.app.parts.settings.scheme == "auto")
        await ui.pilot.press("escape")
        assert ui.app.chat.schemes.chosen == "turbo0v4", "an existing conversation keeps its scheme"
        await ui.pilot.press("ctrl+n")
        assert ui.app.chat.schemes.chosen == "auto"


async def test_a_new_conversation_uses_the_new_default_unless_it_has_its_own(open_app: OpenApp) -> None:
    async with open_app() as ui:
        ui.app.parts.preferences.set("scheme", "turbo4")
        assert ui.app.chat.schemes.chosen == "turbo4"
        ui.app.chat.schemes.set("fp16")
        ui.app.parts.preferences.set("scheme", "turbo3")
        assert ui.app.chat.schemes.chosen == "fp16"


async def test_the_gauge_uses_the_memory_budget(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("Go", "Well.", tokens=1900)
        assert "room for" not in ui.text(), "the scripted model has none"
        ui.app.parts.preferences.set("memory_budget", 1.0)
        await ui.shows("room for")


async def test_all_problems_are_listed_and_the_first_is_shown(open_app: OpenApp) -> None:
    wrong = Settings(theme="nope", keys={"modle": "f4", "scheme": "?!"})
    async with open_app(settings=wrong) as ui:
        await ui.shows("There is no theme 'nope'")
        await ui.shows("2 more in the settings")
        await ui.pilot.press("ctrl+s")
        await ui.shows("the nearest is model")
        await ui.shows("scheme needs keys such as")


async def test_a_damaged_setting_of_the_state_file_is_ignored(paths: Paths) -> None:
    paths.state_file.write_text('[settings]\ntemperature = "hot"\nnonsense = 1\nseed = 3\n')
    assert settings.load(paths) == Settings(seed=3)


async def test_a_theme_is_previewed_and_kept_only_on_enter(open_app: OpenApp, paths: Paths) -> None:
    async with open_app() as ui:
        for key, kept in (("escape", "tqchat-dark"), ("enter", "tqchat-ember")):
            await ui.pilot.press("f9")
            await ui.until(lambda: isinstance(ui.app.screen, ThemePicker))
            options = ui.app.screen.query_one(OptionList)
            options.highlighted = options.get_option_index("tqchat-ember")
            await ui.until(lambda: ui.app.theme == "tqchat-ember")
            assert State.load(paths).settings == {}, "a preview is not a choice"
            await ui.pilot.press(key)
            await ui.until(lambda: not isinstance(ui.app.screen, ThemePicker))
            assert ui.app.theme == kept
        assert State.load(paths).settings == {"theme": "tqchat-ember"}


@pytest.mark.parametrize("size", [(60, 20), (200, 50)])
async def test_the_settings_fit_at_small_and_large_sizes(open_app: OpenApp, size: tuple[int, int]) -> None:
    async with open_app(size) as ui:
        await open_setting(ui, "seed")
        await ui.shows("Esc closes")
        assert all(len(line) <= size[0] for line in ui.text().splitlines())


async def test_a_text_that_is_not_changed_keeps_its_lines(open_app: OpenApp, paths: Paths) -> None:
    lines = "Be brief.\nAnswer in French."
    async with open_app(settings=Settings(theme="tqchat-dark", system_prompt=lines)) as ui:
        await open_setting(ui, "system_prompt")
        field = ui.app.screen.query_one("#value", Input)
        await ui.pilot.press("enter")
        await ui.until(lambda: field.display)
        await ui.pilot.press("enter")
        await ui.until(lambda: not field.display)
        assert ui.app.parts.settings.system_prompt == lines
        assert "system_prompt" not in State.load(paths).settings
