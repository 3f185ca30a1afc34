"""Changing the scheme of a conversation's cache."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence

from tqchat.engine.memory.budget import expected_tokens
from tqchat.engine.memory.shapes import predicted_report
from tqchat.kv.scheme import AUTO, SCHEMES, scheme_setting
from tqchat.ui.parts.parts import Parts
from tqchat.ui.screens.scheme import Choice, SchemePicker

UNDO = "undo"


def scheme(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Change to the scheme of the argument, undo a change, or show the picker.

    Raises:
        UnknownScheme: if there is no scheme of that name.
    """
    if not argument:
        return choose_scheme(parts)
    if argument == UNDO:
        undo_scheme(parts, "")
    else:
        parts.chat.schemes.set(scheme_setting(argument))
    return None


async def choose_scheme(parts: Parts) -> None:
    """Let the user choose a scheme in the picker."""
    chat = parts.chat
    model, report = chat.models.current, chat.caches.report
    empty = report is None or not report.tokens
    if empty and model is not None and model.shapes is not None:
        report = predicted_report(model.shapes, expected_tokens(0, model.context_limit))
    picker = SchemePicker(
        chat.schemes.chosen,
        report,
        chat.caches.is_live and not empty,
        chat.schemes.auto_choice,
        chat.models.profile,
        chat.models.prefill_speed,
        chat.models.memory_budget,
    )
    choice: Choice | None = await parts.ask(picker)
    if choice is not None:
        parts.attempt(chat.schemes.set, choice.scheme, choice.reread)


def undo_scheme(parts: Parts, argument: str) -> None:
    """Return to the scheme before the last change, re-reading the conversation."""
    if not parts.chat.schemes.undo():
        parts.say("The scheme has not been changed here since the model was loaded.")


def choices(parts: Parts) -> Iterable[tuple[str, str]]:
    """All schemes with their descriptions."""
    yield AUTO, "Chosen for the model, with the reason."
    for found in SCHEMES:
        yield found.name, found.description


def values(parts: Parts) -> Sequence[str]:
    """Arguments of ``/scheme``."""
    return [*(name for name, _ in choices(parts)), UNDO]
