"""Settings: one table behind the file and the screen; what is set in the app is kept beside the file."""

from __future__ import annotations

from dataclasses import fields

import pytest
from textual.widgets import Input, OptionList

from tests.ui.conftest import Open, Stage
from tqchat import settings
from tqchat.paths import Paths
from tqchat.settings import SETTINGS, SETTINGS_BY_NAME, Settings, State
from tqchat.ui.screens.dialog import Choose
from tqchat.ui.screens.settings import SettingsScreen
from tqchat.ui.screens.theme import ThemePicker


def test_every_setting_is_in_the_table_with_a_sentence_and_its_default() -> None:
    assert [setting.name for setting in SETTINGS] == [field.name for field in fields(Settings)]
    for setting in SETTINGS:
        assert setting.help.endswith(".") and setting.default_text and setting.applies
        default = getattr(Settings(), setting.name)
        if default not in (None, (), {}):
            assert setting.accepts(default) and setting.default_text == setting.format(default)


@pytest.mark.parametrize("setting", [one for one in SETTINGS if one.kind != "keys"], ids=lambda one: one.name)
def test_what_is_written_is_read_back(setting: settings.Setting) -> None:
    examples = {"scheme": "turbo4", "folders": ["~/a", "/b c"], "integer": 7, "number": 0.5, "flag": True}
    examples["choice"] = "off"
    value = examples.get(setting.kind, "some words")
    assert setting.parse(setting.format(value)) == value


@pytest.mark.parametrize(
    ("name", "text"), [("temperature", "hot"), ("max_tokens", "1.5"), ("scheme", "turbo9"), ("top_p", "0")]
)
def test_what_may_not_be_is_refused_with_what_may(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=SETTINGS_BY_NAME[name].allowed[:20]):
        SETTINGS_BY_NAME[name].parse(text)


async def to(it: Stage, name: str) -> None:
    """Open the settings with the cursor on one."""
    await it.pilot.press("ctrl+s")
    await it.until(lambda: isinstance(it.app.screen, SettingsScreen))
    options = it.app.screen.query_one(OptionList)
    options.highlighted = options.get_option_index(name)
    await it.sees(SETTINGS_BY_NAME[name].help[:40])


async def write(it: Stage, text: str) -> None:
    await it.pilot.press("enter")
    box = it.app.screen.query_one("#value", Input)
    await it.until(lambda: box.has_focus)
    box.value = text
    await it.pilot.press("enter")


async def test_a_setting_is_changed_kept_and_given_back(stage: Open, paths: Paths) -> None:
    paths.config_file.write_text("temperature = 0.9\n")
    async with stage(settings=settings.load_config(paths)) as it:
        await to(it, "temperature")
        await it.sees("config.toml")
        await write(it, "9")
        await it.sees("It must be a number from 0 to 5.")
        await it.pilot.press("escape")
        await write(it, "0.2")
        await it.sees("set here")
        assert it.app.chat.sampling.defaults.temperature == 0.2
        assert settings.load(paths).temperature == 0.2, "commands see it as well"
        assert paths.config_file.read_text() == "temperature = 0.9\n"
    async with stage(settings=settings.load_config(paths)) as it:
        assert it.app.chat.sampling.defaults.temperature == 0.2
        await to(it, "temperature")
        await it.pilot.press("backspace")
        await it.sees_no("set here")
        assert it.app.chat.sampling.defaults.temperature == 0.9
    assert State.load(paths).settings == {}


async def test_the_scheme_of_new_conversations_is_chosen_from_a_list(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Yes.")
        await to(it, "scheme")
        await it.pilot.press("enter")
        await it.until(lambda: isinstance(it.app.screen, Choose))
        await it.pilot.press("home", "enter")
        await it.until(lambda: it.app.parts.settings.scheme == "auto")
        await it.pilot.press("escape")
        assert it.app.chat.schemes.chosen == "turbo0v4", "what is there stays as it is"
        await it.pilot.press("ctrl+n")
        assert it.app.chat.schemes.chosen == "auto"


async def test_an_empty_page_takes_the_new_default_unless_it_has_its_own(stage: Open) -> None:
    async with stage() as it:
        it.app.parts.preferences.set("scheme", "turbo4")
        assert it.app.chat.schemes.chosen == "turbo4"
        it.app.chat.schemes.set("fp16")
        it.app.parts.preferences.set("scheme", "turbo3")
        assert it.app.chat.schemes.chosen == "fp16"


async def test_a_memory_budget_is_what_the_gauge_reckons_with(stage: Open) -> None:
    async with stage() as it:
        await it.chat("Go", "Well.", tokens=1900)
        assert "room for" not in it.text(), "the scripted model has none"
        it.app.parts.preferences.set("memory_budget", 1.0)
        await it.sees("room for")


async def test_all_problems_are_listed_and_the_first_is_said(stage: Open) -> None:
    wrong = Settings(theme="nope", keys={"modle": "f4", "scheme": "?!"})
    async with stage(settings=wrong) as it:
        await it.sees("There is no theme 'nope'")
        await it.sees("2 more in the settings")
        await it.pilot.press("ctrl+s")
        await it.sees("the nearest is model")
        await it.sees("scheme needs keys such as")


async def test_a_damaged_own_setting_is_as_if_it_were_not_there(paths: Paths) -> None:
    paths.state_file.write_text('[settings]\ntemperature = "hot"\nnonsense = 1\nseed = 3\n')
    assert settings.load(paths) == Settings(seed=3)


async def test_a_theme_is_seen_while_it_is_chosen_and_kept_only_on_enter(stage: Open, paths: Paths) -> None:
    async with stage() as it:
        for key, kept in (("escape", "tqchat-dark"), ("enter", "tqchat-ember")):
            await it.pilot.press("f9")
            await it.until(lambda: isinstance(it.app.screen, ThemePicker))
            options = it.app.screen.query_one(OptionList)
            options.highlighted = options.get_option_index("tqchat-ember")
            await it.until(lambda: it.app.theme == "tqchat-ember")
            assert State.load(paths).settings == {}, "a preview is not a choice"
            await it.pilot.press(key)
            await it.until(lambda: not isinstance(it.app.screen, ThemePicker))
            assert it.app.theme == kept
        assert State.load(paths).settings == {"theme": "tqchat-ember"}


@pytest.mark.parametrize("size", [(60, 20), (200, 50)])
async def test_the_settings_fit_where_there_is_little_room(stage: Open, size: tuple[int, int]) -> None:
    async with stage(size) as it:
        await to(it, "seed")
        await it.sees("Esc closes")
        assert all(len(line) <= size[0] for line in it.text().splitlines())
