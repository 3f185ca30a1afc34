"""Settings of the app, of one conversation, and the theme."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from tqchat.engine.commands import THINKING_CHOICES
from tqchat.kv.scheme import scheme_setting
from tqchat.settings import Settings
from tqchat.store.database import SamplingChoice
from tqchat.store.sampling import parse
from tqchat.text import one_line
from tqchat.ui import figures
from tqchat.ui.actions.registry import Refused
from tqchat.ui.input import slash
from tqchat.ui.parts import mouse
from tqchat.ui.parts.parts import Parts
from tqchat.ui.parts.presets import Preset
from tqchat.ui.screens.chat_settings import NAMES, ChatSettings, Decision
from tqchat.ui.screens.dialog import Choose
from tqchat.ui.screens.settings import SettingsScreen
from tqchat.ui.screens.theme import ThemePicker
from tqchat.ui.widgets.status.bars import Hints

DEFAULT = "default"
BUDGET = "budget"
MAX_BUDGET_TOKENS = 1_000_000
_THINKING_HELP = {
    "off": "Answer at once.",
    "on": "Reason before the answer.",
    "low": "Reason a little.",
    "medium": "Reason for a while.",
    "high": "Reason for long.",
}


def preferences(parts: Parts, argument: str) -> None:
    """Show all settings."""

    def choose_theme() -> None:
        parts.host.run_worker(_choose_theme(parts))

    parts.host.push_screen(SettingsScreen(parts.preferences, choose_theme))


def apply(parts: Parts, changed: Settings) -> None:
    """Apply changed settings."""
    parts.appearance.apply(changed)
    parts.chat.use_defaults(scheme_setting(changed.scheme), changed.system_prompt, changed.sampling)
    parts.chat.thinking.defaults = changed.reasoning
    parts.chat.models.memory_budget = changed.memory_budget_bytes
    apply_to_screen(parts, changed)
    parts.screen.figures_changed()


def apply_to_screen(parts: Parts, settings: Settings) -> None:
    """Apply the settings that the mounted screen needs."""
    parts.log.thinking = settings.show_thinking
    mouse.capture(parts.host, settings.mouse)
    parts.screen.query_one(Hints).mouse_is_captured(settings.mouse)


def theme(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Use the theme of the argument, or show the picker.

    Raises:
        Refused: if there is no such theme.
    """
    if not argument:
        return _choose_theme(parts)
    if not parts.appearance.use(argument):
        raise Refused(f"There is no theme {one_line(argument)!r}; /theme alone lists them.")
    return None


async def _choose_theme(parts: Parts) -> None:
    """Let the user choose a theme, with a preview."""
    appearance = parts.appearance
    before = appearance.theme
    appearance.previewing = True
    chosen = await parts.ask(ThemePicker(appearance.names, before))
    appearance.previewing = False
    appearance.use(chosen or before)
    appearance.remember(parts.host.current_theme)


def theme_choices(parts: Parts) -> Iterable[tuple[str, str]]:
    """All themes."""
    return [(name, "Use this theme.") for name in parts.appearance.names]


def theme_values(parts: Parts) -> Sequence[str]:
    """Arguments of ``/theme``."""
    return sorted(parts.appearance.names)


async def conversation_settings(parts: Parts, argument: str) -> None:
    """Show the system prompt and the sampling of this conversation."""
    chat = parts.chat
    inherited = {name: chat.sampling.inherited(name) for name in NAMES}
    dialog = ChatSettings(chat.shown.system_prompt, chat.sampling.choice, parts.presets, inherited)
    decision: Decision | None = await parts.ask(dialog)
    if decision is None:
        return
    if decision.system_prompt != chat.shown.system_prompt:
        parts.attempt(chat.shown.set_system_prompt, decision.system_prompt)
    chat.sampling.set(decision.sampling)


def system_prompt(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Set the system prompt of this conversation."""
    if not argument:
        return conversation_settings(parts, "")
    parts.chat.shown.set_system_prompt(argument)
    parts.say("The system prompt applies from the next message on.")
    return None


def sampling(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Set sampling values of this conversation, such as ``temperature=0.7 seed=1``.

    Raises:
        Refused: if a value is no number.
        TqchatError: if a name is unknown or a value out of range.
    """
    wanted = slash.assignments(argument)
    if not wanted:
        return conversation_settings(parts, "")
    try:
        values = {name: slash.number(value) for name, value in wanted.items()}
    except ValueError:
        raise Refused("Write it as name=number, such as temperature=0.7.") from None
    parse(dict(values))
    choice = replace(parts.chat.sampling.choice, **values)  # type: ignore[arg-type]
    parts.chat.sampling.set(choice)
    given = ", ".join(f"{name} {value:g}" for name, value in choice.given.items())
    parts.say(f"Set for this conversation: {given}." if given else "All values come from the settings.")
    return None


def sampling_values(parts: Parts) -> Sequence[str]:
    """Arguments of ``/set``."""
    return [f"{field.name}=" for field in fields(SamplingChoice)]


def preset(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Use, save or delete a preset.

    Raises:
        BadPreset: if there is no such preset, or it cannot be saved.
    """
    verb, _, name = argument.partition(" ")
    chat, presets = parts.chat, parts.presets
    match verb:
        case "":
            return conversation_settings(parts, "")
        case "save":
            kept = presets.save(name, Preset(chat.sampling.choice, chat.shown.system_prompt))
            parts.say(f"Saved as {name}: /preset {name} applies it to any conversation.{_copied(kept)}")
        case "delete":
            kept = presets.delete(name)
            parts.say(f"Deleted the preset {name}.{_copied(kept)}")
        case _:
            found = presets.get(argument)
            if found.system_prompt is not None:
                chat.shown.set_system_prompt(found.system_prompt)
            chat.sampling.set(found.sampling)
            parts.say(f"{argument}: {found.summary}.")
    return None


def _copied(kept: Path | None) -> str:
    return f" The file as you had edited it is kept as {kept.name}." if kept is not None else ""


def preset_values(parts: Parts) -> Sequence[str]:
    """Arguments of ``/preset``."""
    return [*parts.presets.all(), "save", "delete"]


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
        return _choose_thinking(parts)
    choice = next((one for one in THINKING_CHOICES if one == argument), None)
    if choice is None:
        raise Refused(f"/think takes {', '.join(known)}, default or budget N.")
    if choice not in known:
        listed = " and ".join([", ".join(known[:-1]), known[-1]])
        raise Refused(f"{_model(parts)} cannot be set to {choice}; it knows {listed}.")
    parts.chat.thinking.set(choice)
    _confirm(parts, choice)
    return None


async def _choose_thinking(parts: Parts) -> None:
    chosen = await parts.ask(
        Choose(
            "Reasoning in this conversation",
            list(thinking_choices(parts)),
            parts.chat.thinking.own or DEFAULT,
        )
    )
    if chosen is not None:
        thinking(parts, chosen)


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
    """Values of the loaded model's reasoning switch.

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


def thinking_choices(parts: Parts) -> Iterable[tuple[str, str]]:
    """Values of the model's reasoning switch, and the default; empty without a switch."""
    known = parts.chat.thinking.choices
    if not known:
        return []
    model = parts.chat.models.current
    does = f" ({model.thinking_default})" if model is not None and model.thinking_default else ""
    options = [(choice, _THINKING_HELP[choice]) for choice in known]
    return [*options, (DEFAULT, f"Leave it to the settings, else to the model{does}.")]


def thinking_values(parts: Parts) -> Sequence[str]:
    """Arguments of ``/think``."""
    return [*(choice for choice, _ in thinking_choices(parts)), BUDGET]
