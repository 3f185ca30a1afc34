"""The registry: one entry makes an action appear everywhere."""

from __future__ import annotations

import pytest

from tests.ui.conftest import OpenApp
from tqchat.errors import TqchatError
from tqchat.ui.actions.keys import SCOPES, Keys
from tqchat.ui.actions.markdown import key_table
from tqchat.ui.actions.registry import GROUPS, Action, Refused, Registry, Slash
from tqchat.ui.actions.table import ACTIONS
from tqchat.ui.parts.parts import Parts
from tqchat.ui.screens.help import Help
from tqchat.ui.widgets.prompt.prompt import Prompt


def wave(parts: Parts, argument: str) -> None:
    if argument == "no":
        raise Refused("Nobody waves back.")
    parts.say(f"Waved to {argument or 'everyone'}.")


WAVE = Action(
    "wave", "Wave", "Greets somebody.", "Screen", wave, "f12", hint="wave", rank=1,
    slash=Slash("wave", "[NAME]", "greet somebody", values=lambda parts: ["mia", "tom"]),
    choices=lambda parts: [("mia", "The cat.")],
)  # fmt: skip


async def test_an_added_action_is_in_keys_footer_palette_slash_commands_completion_and_help(
    open_app: OpenApp,
) -> None:
    async with open_app((120, 140), actions=Registry([*ACTIONS, WAVE])) as ui:
        await ui.shows("F12 wave")
        await ui.pilot.press("f12")
        await ui.shows("Waved to everyone.")
        palette = {command.title: command for command in ui.app.get_system_commands(ui.app.screen)}
        assert palette["Wave"].help == "Greets somebody.  F12"
        await palette["Wave: mia"].callback()
        await ui.shows("Waved to mia.")
        await ui.pilot.press(*"/wav")
        await ui.shows("greet somebody")
        await ui.pilot.press("tab", "t")
        await ui.shows("/wave tom")
        await ui.pilot.press("tab", "enter")
        await ui.shows("Waved to tom.")
        assert ui.app.query_one(Prompt).text == ""
        await ui.pilot.press("f1")
        await ui.until(lambda: isinstance(ui.app.screen, Help))
        lines = ui.text().splitlines()
        assert any("F12" in line and "Wave" in line and "Greets somebody." in line for line in lines)
        await ui.shows("/wave [NAME]")


async def test_an_added_action_of_a_message_works_while_the_cursor_is_on_one(open_app: OpenApp) -> None:
    def shout(parts: Parts, argument: str) -> None:
        assert parts.log.marked is not None
        parts.say(parts.log.marked.content.upper())

    def marked(parts: Parts) -> bool:
        return parts.log.marked is not None

    action = Action(
        "shout", "Shout", "The message in capitals.", "Message", shout, "s", scope="message", applies=marked
    )
    async with open_app(actions=Registry([*ACTIONS, action])) as ui:
        await ui.turn("About foxes", "Red ones.")
        await ui.pilot.press("s")
        assert ui.app.query_one(Prompt).text == "s"
        await ui.pilot.press("ctrl+up", "s")
        await ui.shows("RED ONES.")


async def test_an_action_whose_condition_fails_does_nothing(open_app: OpenApp) -> None:
    never = Action("never", "Never", "Never applies.", "Screen", wave, "f12", applies=lambda parts: False)
    async with open_app(actions=Registry([*ACTIONS, never])) as ui:
        await ui.pilot.press("f12")
        await ui.pilot.press("f1")
        await ui.until(lambda: isinstance(ui.app.screen, Help))
        assert "Waved" not in ui.text()


async def test_a_refused_command_returns_to_the_prompt_as_it_was(open_app: OpenApp) -> None:
    async with open_app(actions=Registry([*ACTIONS, WAVE])) as ui:
        prompt = ui.app.query_one(Prompt)
        prompt.put("/wave no")
        prompt.move_cursor((0, 3))
        await ui.pilot.press("enter")
        await ui.shows("Nobody waves back.")
        assert (prompt.text, prompt.cursor_location) == ("/wave no", (0, 3))
        prompt.clear()
        await ui.pilot.press("up")
        assert prompt.text == "", "only what was accepted is remembered"


async def fail_later(parts: Parts, argument: str) -> None:
    raise TqchatError("It failed in the worker.")


def fail_now(parts: Parts, argument: str) -> None:
    raise ValueError(f"{argument} is no number.") if argument else OSError("The disk is full.")


async def test_errors_of_actions_are_shown(open_app: OpenApp) -> None:
    later = Action("later", "Later", "Fails later.", "Screen", fail_later, "f12")
    now = Action("now", "Now", "Fails.", "Screen", fail_now, "f11", slash=Slash("now", "", "fail"))
    async with open_app(actions=Registry([*ACTIONS, later, now])) as ui:
        await ui.pilot.press("f12")
        await ui.shows("✗ It failed in the worker.")
        await ui.pilot.press("f11")
        await ui.shows("✗ The disk is full.")
        await ui.send("/now x")
        await ui.shows("✗ x is no number.")
        assert ui.app.query_one(Prompt).text == "/now x"


async def test_a_command_is_not_kept_as_unsent_text(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Red ones.")
        await ui.send("/new")
        await ui.until(lambda: ui.app.chat.shown.conversation is None)
        await ui.pilot.press("alt+down")
        await ui.until(lambda: ui.app.chat.shown.conversation is not None)
        assert ui.app.query_one(Prompt).text == ""


async def test_ctrl_c_outside_the_prompt_says_how_to_quit(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Red ones.")
        await ui.pilot.press("ctrl+up", "ctrl+c")
        await ui.shows("^C again offers to quit.")
        await ui.pilot.press("ctrl+c")
        await ui.shows("Quit tqchat?")
        await ui.pilot.press("escape")
        await ui.hides("Quit tqchat?")
        assert ui.app.is_running


@pytest.mark.parametrize("action", list(ACTIONS), ids=lambda action: action.name)
def test_every_action_is_described(action: Action) -> None:
    assert action.help.endswith(".") and action.help[0].isupper()
    assert action.title and action.group in GROUPS and action.scope in SCOPES
    assert bool(action.rank) == bool(action.hint) or action.scope == "message"
    assert action.default_keys == [key.strip() for key in action.default_keys if key.strip()]


def test_names_words_and_keys_are_unique() -> None:
    assert len({action.name for action in ACTIONS}) == len(list(ACTIONS))
    words = [slash.word for slash in ACTIONS.slashes()]
    assert len(set(words)) == len(words)
    for scope in SCOPES:
        keys = [key for action in ACTIONS.scoped(scope) for key in action.default_keys]
        assert len(set(keys)) == len(keys)


def test_a_name_or_a_command_cannot_be_registered_twice() -> None:
    for twice in ([WAVE, WAVE], [WAVE, Action("hail", "Hail", "Hails.", "Screen", wave, slash=WAVE.slash)]):
        with pytest.raises(ValueError, match="wave"):
            Registry(twice)


def test_an_action_without_keys_accepts_the_users() -> None:
    keys = Keys(ACTIONS, {"export": "f12"})
    assert keys.label("export") == "F12" and Keys(ACTIONS).label("export") == "?"
    assert any(binding.id == "export" for binding in keys.bindings("app"))


def test_the_key_table_for_the_readme_is_made_from_the_registry() -> None:
    table = key_table(ACTIONS)
    assert "| Ctrl+K | Cache scheme | How this conversation's cache is stored. |" in table
    assert "| `d`, `delete` | Delete | Only this message; later ones stay. |" in table
    assert len(table.splitlines()) == 2 + len([action for action in ACTIONS if action.keys])
    assert key_table(ACTIONS, ["scheme"]).splitlines()[2:] == [
        "| Ctrl+K | Cache scheme | How this conversation's cache is stored. |"
    ]
