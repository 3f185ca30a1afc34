"""Keys from [keys] in config.toml: which are accepted, and which are refused with a reason."""

from __future__ import annotations

from itertools import combinations

import pytest

from tests.ui.conftest import Open
from tqchat.settings import Settings
from tqchat.ui.actions.keys import SCOPES, Keys, checked, lost
from tqchat.ui.actions.table import ACTIONS
from tqchat.ui.screens.help import Help
from tqchat.ui.screens.scheme import SchemePicker


def test_no_two_actions_share_a_key_by_default() -> None:
    for scope in SCOPES:
        for one, other in combinations(ACTIONS.scoped(scope), 2):
            assert not set(one.default_keys) & set(other.default_keys), (one.name, other.name)


def test_unusable_keys_are_refused_with_a_sentence() -> None:
    good, problems = checked(
        ACTIONS, {"scheme": "F12, alt+s", "new": "f12", "modle": "f4", "quit": "?!", "edit": "f12"}
    )
    assert good == {"scheme": "f12,alt+s", "edit": "f12"}, "a message's keys are apart from the app's"
    assert len(problems) == 3
    assert "f12 is given to scheme and to new" in problems[0]
    assert "the nearest is model" in problems[1]


@pytest.mark.parametrize("key", ["f12", "ctrl+shift+a", "question_mark", "alt+minus", "space", "ctrl+pageup"])
def test_keys_that_exist_are_accepted(key: str) -> None:
    assert checked(ACTIONS, {"scheme": key}) == ({"scheme": key}, [])


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("control+k", "ctrl+k"), ("ctrl+pgup", "ctrl+pageup"), ("esc", "escape"), ("f25", "f5"), ("qqqq+k", "")],
)
def test_a_key_that_does_not_exist_is_refused_with_the_nearest(key: str, nearest: str) -> None:
    good, problems = checked(ACTIONS, {"scheme": f"f12,{key}"})
    assert good == {} and len(problems) == 1
    assert f"scheme has {key!r}, which is no key" in problems[0]
    assert problems[0].endswith(f"; the nearest is {nearest}." if nearest else "no key.")
    assert Keys(ACTIONS, good).of("scheme") == ["ctrl+k"], "the default stays"


def test_an_action_that_lost_its_last_key_is_named() -> None:
    assert lost(ACTIONS, {"scheme": "ctrl+n"}) == [
        "New conversation has no key any more: scheme took ctrl+n."
    ]
    assert lost(ACTIONS, {"scheme": "f2"}) == []


async def test_own_keys_work_and_problems_are_shown(stage: Open) -> None:
    keys = {"scheme": "f12", "nonsense": "f4"}
    async with stage(settings=Settings(theme="tqchat-dark", keys=keys)) as it:
        await it.sees("there is no action")
        await it.sees("F12 scheme")
        await it.pilot.press("f12")
        await it.until(lambda: isinstance(it.app.screen, SchemePicker))


@pytest.mark.parametrize("keys", [{}, {"scheme": "f12"}, {"new": "f2,ctrl+e", "help": "ctrl+k"}])
async def test_the_shown_keys_are_the_bound_keys(stage: Open, keys: dict[str, str]) -> None:
    async with stage(settings=Settings(theme="tqchat-dark", keys=keys)) as it:
        await it.chat("About foxes", "Red ones.")
        await it.pilot.press("f6")
        bound: dict[str, set[str]] = {}
        for key, active in it.app.screen.active_bindings.items():
            if active.binding.id in ACTIONS:
                bound.setdefault(str(active.binding.id), set()).add(key)
        shown = {action.name: set(it.app.parts.keys.of(action.name)) for action in ACTIONS}
        assert {name: keys for name, keys in shown.items() if keys} == bound


async def test_the_footer_survives_a_resize_under_a_dialog(stage: Open) -> None:
    async with stage() as it:
        await it.pilot.press("f1")
        await it.until(lambda: isinstance(it.app.screen, Help))
        await it.pilot.resize_terminal(100, 30)
        await it.pilot.press("escape")
        await it.sees("^K scheme")
