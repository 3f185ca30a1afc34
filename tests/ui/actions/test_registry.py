"""The registry: one entry makes an action appear everywhere."""

from __future__ import annotations

import pytest

from tests.ui.conftest import Open
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
    stage: Open,
) -> None:
    async with stage((120, 100), actions=Registry([*ACTIONS, WAVE])) as it:
        await it.sees("F12 wave")
        await it.pilot.press("f12")
        await it.sees("Waved to everyone.")
        palette = {command.title: command for command in it.app.get_system_commands(it.app.screen)}
        assert palette["Wave"].help == "Greets somebody.  F12"
        await palette["Wave: mia"].callback()
        await it.sees("Waved to mia.")
        await it.pilot.press(*"/wav")
        await it.sees("greet somebody")
        await it.pilot.press("tab", "t")
        await it.sees("/wave tom")
        await it.pilot.press("tab", "enter")
        await it.sees("Waved to tom.")
        assert it.app.query_one(Prompt).text == ""
        await it.pilot.press("f1")
        await it.until(lambda: isinstance(it.app.screen, Help))
        lines = it.text().splitlines()
        assert any("F12" in line and "Wave" in line and "Greets somebody." in line for line in lines)
        await it.sees("/wave [NAME]")


async def test_an_added_action_of_a_message_works_while_the_cursor_is_on_one(stage: Open) -> None:
    def shout(parts: Parts, argument: str) -> None:
        assert parts.log.marked is not None
        parts.say(parts.log.marked.content.upper())

    def marked(parts: Parts) -> bool:
        return parts.log.marked is not None

    action = Action(
        "shout", "Shout", "The message in capitals.", "Message", shout, "s", scope="message", applies=marked
    )
    async with stage(actions=Registry([*ACTIONS, action])) as it:
        await it.chat("About foxes", "Red ones.")
        await it.pilot.press("s")
        assert it.app.query_one(Prompt).text == "s"
        await it.pilot.press("ctrl+up", "s")
        await it.sees("RED ONES.")


async def test_an_action_whose_condition_fails_does_nothing(stage: Open) -> None:
    never = Action("never", "Never", "Never applies.", "Screen", wave, "f12", applies=lambda parts: False)
    async with stage(actions=Registry([*ACTIONS, never])) as it:
        await it.pilot.press("f12")
        await it.pilot.press("f1")
        await it.until(lambda: isinstance(it.app.screen, Help))
        assert "Waved" not in it.text()


async def test_a_refused_command_returns_to_the_prompt_as_it_was(stage: Open) -> None:
    async with stage(actions=Registry([*ACTIONS, WAVE])) as it:
        prompt = it.app.query_one(Prompt)
        prompt.put("/wave no")
        prompt.move_cursor((0, 3))
        await it.pilot.press("enter")
        await it.sees("Nobody waves back.")
        assert (prompt.text, prompt.cursor_location) == ("/wave no", (0, 3))
        prompt.clear()
        await it.pilot.press("up")
        assert prompt.text == "", "only what was accepted is remembered"


async def fail_later(parts: Parts, argument: str) -> None:
    raise TqchatError("It failed in the worker.")


def fail_now(parts: Parts, argument: str) -> None:
    raise ValueError(f"{argument} is no number.") if argument else OSError("The disk is full.")


async def test_errors_of_actions_are_shown(stage: Open) -> None:
    later = Action("later", "Later", "Fails later.", "Screen", fail_later, "f12")
    now = Action("now", "Now", "Fails.", "Screen", fail_now, "f11", slash=Slash("now", "", "fail"))
    async with stage(actions=Registry([*ACTIONS, later, now])) as it:
        await it.pilot.press("f12")
        await it.sees("✗ It failed in the worker.")
        await it.pilot.press("f11")
        await it.sees("✗ The disk is full.")
        await it.ask("/now x")
        await it.sees("✗ x is no number.")
        assert it.app.query_one(Prompt).text == "/now x"


async def test_a_command_is_not_kept_as_unsent_text(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Red ones.")
        await it.ask("/new")
        await it.until(lambda: it.app.chat.shown.conversation is None)
        await it.pilot.press("alt+down")
        await it.until(lambda: it.app.chat.shown.conversation is not None)
        assert it.app.query_one(Prompt).text == ""


async def test_ctrl_c_outside_the_prompt_says_how_to_quit(
    stage: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage() as it:
        said: list[str] = []
        monkeypatch.setattr(it.app, "notify", lambda text, **more: said.append(text))
        await it.chat("About foxes", "Red ones.")
        await it.pilot.press("ctrl+up", "ctrl+c")
        await it.until(lambda: said == ["Press [b]ctrl+q[/b] to quit the app"])


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


def test_an_action_without_keys_takes_a_persons_own() -> None:
    keys = Keys(ACTIONS, {"export": "f12"})
    assert keys.label("export") == "F12" and Keys(ACTIONS).label("export") == "?"
    assert any(binding.id == "export" for binding in keys.bindings("app"))


def test_the_key_table_for_the_readme_is_made_from_the_registry() -> None:
    table = key_table(ACTIONS)
    assert "| Ctrl+K | Cache scheme | How this conversation's cache is stored. |" in table
    assert "| `d`, `delete` | Delete | This message alone; what follows stays. |" in table
    assert len(table.splitlines()) == 2 + len([action for action in ACTIONS if action.keys])
    assert key_table(ACTIONS, ["scheme"]).splitlines()[2:] == [
        "| Ctrl+K | Cache scheme | How this conversation's cache is stored. |"
    ]
