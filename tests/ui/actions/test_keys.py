"""Keys from [keys] in config.toml: which are accepted, and which are refused with a reason."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import pytest

from tests.ui.conftest import OpenApp
from tqchat.settings import Settings
from tqchat.ui.actions.keys import SCOPES, Keys, validate_keys, without_keys
from tqchat.ui.actions.registry import Action, Registry
from tqchat.ui.actions.table import ACTIONS
from tqchat.ui.parts.parts import Parts
from tqchat.ui.screens.help import Help
from tqchat.ui.screens.scheme import SchemePicker


def test_no_two_actions_share_a_key_by_default() -> None:
    for scope in SCOPES:
        for one, other in combinations(ACTIONS.scoped(scope), 2):
            assert not set(one.default_keys) & set(other.default_keys), (one.name, other.name)


def test_unusable_keys_are_refused_with_a_sentence() -> None:
    good, problems = validate_keys(
        ACTIONS, {"scheme": "F12, alt+s", "new": "f12", "modle": "f4", "quit": "?!", "edit": "f12"}
    )
    assert good == {"scheme": "f12,alt+s", "edit": "f12"}, "a message's keys are apart from the app's"
    assert len(problems) == 3
    assert "f12 is set for scheme and for new" in problems[0]
    assert "the nearest is model" in problems[1]


@pytest.mark.parametrize("key", ["f12", "ctrl+shift+a", "question_mark", "alt+minus", "space", "ctrl+pageup"])
def test_keys_that_exist_are_accepted(key: str) -> None:
    assert validate_keys(ACTIONS, {"scheme": key}) == ({"scheme": key}, [])


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("control+k", "ctrl+k"), ("ctrl+pgup", "ctrl+pageup"), ("esc", "escape"), ("f25", "f5"), ("qqqq+k", "")],
)
def test_a_key_that_does_not_exist_is_refused_with_the_nearest(key: str, nearest: str) -> None:
    good, problems = validate_keys(ACTIONS, {"scheme": f"f12,{key}"})
    assert good == {} and len(problems) == 1
    assert f"scheme has {key!r}, which is not a key" in problems[0]
    assert problems[0].endswith(f"; the nearest is {nearest}." if nearest else "not a key.")
    assert Keys(ACTIONS, good).of("scheme") == ["ctrl+k"], "the default stays"


def test_an_action_that_lost_its_last_key_is_named() -> None:
    assert without_keys(ACTIONS, {"scheme": "ctrl+n"}) == [
        "New conversation no longer has a key: ctrl+n is set for scheme."
    ]
    assert without_keys(ACTIONS, {"scheme": "f2"}) == []


async def test_own_keys_work_and_problems_are_shown(open_app: OpenApp) -> None:
    keys = {"scheme": "f12", "nonsense": "f4"}
    async with open_app(settings=Settings(theme="tqchat-dark", keys=keys)) as ui:
        await ui.shows("there is no action")
        await ui.shows("F12 scheme")
        await ui.pilot.press("f12")
        await ui.until(lambda: isinstance(ui.app.screen, SchemePicker))


@pytest.mark.parametrize("keys", [{}, {"scheme": "f12"}, {"new": "f2,ctrl+e", "help": "ctrl+k"}])
async def test_the_shown_keys_are_the_bound_keys(open_app: OpenApp, keys: dict[str, str]) -> None:
    async with open_app(settings=Settings(theme="tqchat-dark", keys=keys)) as ui:
        await ui.turn("About foxes", "Red ones.")
        await ui.pilot.press("f6")
        bound: dict[str, set[str]] = {}
        for key, active in ui.app.screen.active_bindings.items():
            if active.binding.id in ACTIONS:
                bound.setdefault(str(active.binding.id), set()).add(key)
        shown = {action.name: set(ui.app.parts.keys.of(action.name)) for action in ACTIONS}
        assert {name: keys for name, keys in shown.items() if keys} == bound


async def test_the_footer_survives_a_resize_under_a_dialog(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.pilot.press("f1")
        await ui.until(lambda: isinstance(ui.app.screen, Help))
        await ui.pilot.resize_terminal(100, 30)
        await ui.pilot.press("escape")
        await ui.shows("^K scheme")


async def test_every_key_with_alt_or_ctrl_and_an_arrow_has_another(open_app: OpenApp) -> None:
    """On a Mac, Alt types characters, and Ctrl with an arrow belongs to the system."""
    done: list[str] = []

    def probe(name: str) -> Action:
        def run(parts: Parts, argument: str) -> None:
            done.append(name)

        return dataclasses.replace(ACTIONS[name], run=run)

    needs_alt = {
        action.name: [key for key in action.default_keys if key.startswith("alt+")] for action in ACTIONS
    }
    probes = [probe(action.name) if needs_alt[action.name] else action for action in ACTIONS]
    async with open_app(actions=Registry(probes)) as ui:
        for name, keys in needs_alt.items():
            for key in keys:
                await ui.pilot.press("a", "ctrl+x", key.removeprefix("alt+"))
                await ui.until(lambda name=name: done[-1:] == [name])
        assert set(ui.app.parts.prompt.text) == {"a"}
        await ui.pilot.press("ctrl+x", "escape", "m")
        await ui.until(lambda: ui.app.parts.prompt.text.endswith("m"))
        assert "context limit" not in ui.text()
    arrows = [f"ctrl+{arrow}" for arrow in ("up", "down", "left", "right")]
    for action in ACTIONS:
        if set(action.default_keys) & set(arrows):
            assert set(action.default_keys) - set(arrows), action.name


def test_hints_on_a_mac_name_keys_that_need_no_alt(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(ACTIONS)
    assert (keys.label("make_room"), keys.label("previous")) == ("Alt+M", "Alt+↑")
    assert keys.labels("make_room") == ["Alt+M", "^X m"]
    monkeypatch.setattr("sys.platform", "darwin")
    assert (keys.label("make_room"), keys.label("previous")) == ("^X m", "Ctrl+PgUp")
    assert Keys(ACTIONS, {"alt_prefix": "f12", "make_room": "alt+j"}).label("make_room") == "F12 j"
