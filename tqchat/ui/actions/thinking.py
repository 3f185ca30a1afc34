"""The reasoning switch of the shown conversation."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence

from tqchat.engine.commands import THINKING_CHOICES
from tqchat.store.records import ThinkingChoice
from tqchat.text import one_line
from tqchat.ui import figures
from tqchat.ui.actions.registry import Refused
from tqchat.ui.parts.parts import Parts
from tqchat.ui.screens.dialog import Choose

DEFAULT = "default"
BUDGET = "budget"
MAX_BUDGET_TOKENS = 1_000_000
_HELP = {
    "off": "Answer at once.",
    "on": "Reason before the answer.",
    "low": "Reason a little.",
    "medium": "Reason for a while.",
    "high": "Reason for long.",
    DEFAULT: "Leave it to the settings, else to the model.",
}


def thinking(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Set how much the model reasons in this conversation, or show the choices.

    Raises:
        Refused: if the model has no such choice.
    """
    word, _, rest = argument.partition(" ")
    if word == BUDGET:
        _set_budget(parts, rest.strip())
        return None
    if word == DEFAULT and not rest:
        parts.chat.thinking.set(None)
        _confirm(parts, "left to the settings and the model")
        return None
    known = _known_choices(parts)
    if not word:
        return _choose(parts)
    choice = next((one for one in THINKING_CHOICES if one == argument), None)
    if choice is None:
        raise Refused(f"/think takes {', '.join(known)}, default or budget N.")
    if choice not in known:
        listed = " and ".join([", ".join(known[:-1]), known[-1]])
        raise Refused(f"{_model(parts)} cannot be set to {choice}; it knows {listed}.")
    _set(parts, choice)
    return None


async def _choose(parts: Parts) -> None:
    chosen = await parts.ask(
        Choose("Reasoning in this conversation", list(choices(parts)), parts.chat.thinking.own or DEFAULT)
    )
    if chosen is not None:
        thinking(parts, chosen)


def _set(parts: Parts, choice: ThinkingChoice) -> None:
    parts.chat.thinking.set(choice)
    _confirm(parts, choice)


def _set_budget(parts: Parts, text: str) -> None:
    """Set the maximum length of the reasoning. Works without a switch: the engine ends the reasoning."""
    if text == DEFAULT:
        parts.chat.thinking.set_budget(None)
        _confirm(parts, "the budget is left to the settings")
        return
    if not (text.isascii() and text.isdigit()) or int(text) > MAX_BUDGET_TOKENS:
        raise Refused("Write a number of tokens or default, such as /think budget 500.")
    parts.chat.thinking.set_budget(int(text))
    _confirm(parts, f"at most {figures.tokens(int(text))}")


def _confirm(parts: Parts, what: str) -> None:
    parts.say(f"Thinking: {what}, from the next reply on.")
    parts.screen.figures_changed()


def _known_choices(parts: Parts) -> tuple[str, ...]:
    """What the loaded model's switch can be set to.

    Raises:
        Refused: if there is no model or no switch.
    """
    if parts.chat.models.current is None:
        raise Refused("No model is loaded yet.")
    known = parts.chat.thinking.choices
    if not known:
        raise Refused(f"{_model(parts)} has no switch for its reasoning.")
    return known


def _model(parts: Parts) -> str:
    return one_line(parts.chat.models.current.name) if parts.chat.models.current else "The model"


def choices(parts: Parts) -> Iterable[tuple[str, str]]:
    """What the model's switch can be set to, and the default; nothing without a switch."""
    known = parts.chat.thinking.choices
    return [(choice, _HELP[choice]) for choice in (*known, DEFAULT)] if known else []


def values(parts: Parts) -> Sequence[str]:
    """Arguments of ``/think``."""
    return [*(choice for choice, _ in choices(parts)), BUDGET]
