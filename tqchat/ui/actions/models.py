"""Choosing, downloading and loading models."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from tqchat.engine import commands, events
from tqchat.engine.commands import NO_ADAPTER, STARTER, drafting_of, model_ref
from tqchat.engine.hub import catalog, disk_use, local_cache, resolve
from tqchat.engine.memory import recommend
from tqchat.errors import TqchatError
from tqchat.kv.scheme import parse_scheme
from tqchat.text import one_line
from tqchat.ui import figures
from tqchat.ui.parts.parts import Parts
from tqchat.ui.screens.dialog import Ask, Confirm
from tqchat.ui.screens.models import ModelChoice, ModelPicker, Models


def model(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Load the model of the argument, or show the picker. The current one stays until it is ready."""
    if not argument:
        return _choose(parts)
    _load(parts, argument)
    return None


async def _choose(parts: Parts) -> None:
    chat = parts.chat
    picker = ModelPicker(
        chat.models.current.ref if chat.models.current else None,
        parse_scheme(chat.schemes.in_force),
        look=lambda: _look(parts.settings.model_folders),
        ask=lambda ref, folder: parts.engine.submit(commands.EstimateModel(ref, folder)),
        loading=chat.models.loading,
    )
    choice: ModelChoice | None = await parts.ask(picker)
    match choice:
        case ModelChoice(ref, "load"):
            _load(parts, ref)
        case ModelChoice(_, "pause"):
            chat.models.pause_download()
        case ModelChoice(ref, "discard"):
            chat.models.pause_download()
            parts.in_thread(lambda: _discard(parts, ref))
        case ModelChoice(ref, "delete"):
            await _ask_to_delete(parts, ref)


def _look(folders: Sequence[str]) -> Models:
    """Models on this machine, and recommended ones. Runs in a thread."""
    local = catalog.scan(folders)
    try:
        machine = recommend.this_machine()
    except TqchatError:
        return Models(local, [], 0)
    return Models(local, recommend.suggestions(machine), machine.free_bytes)


async def _ask_to_delete(parts: Parts, ref: str) -> None:
    size = figures.size(disk_use.storage_bytes(local_cache.storage_folder(ref)))
    question = f"{ref} takes {size} in the Hugging Face cache, which other programs use too."
    if await parts.ask(Confirm("Delete this model?", question, "delete")):
        parts.in_thread(lambda: _delete(parts, ref))


def _delete(parts: Parts, ref: str) -> None:
    """Delete a model of the Hugging Face cache. Runs in a thread."""
    current = parts.chat.models.current
    try:
        draft = drafting_of(parts.settings.draft).model
        loaded = [resolve.local_folder(one) for one in (current.ref if current else None, draft)]
        freed = disk_use.delete(ref, [folder for folder in loaded if folder is not None])
    except TqchatError as error:
        parts.host.call_from_thread(parts.say, str(error), "error")
    else:
        text = f"Deleted {ref} from the Hugging Face cache; {figures.size(freed)} are free again."
        parts.host.call_from_thread(parts.say, text)


def _load(parts: Parts, ref: str) -> None:
    parts.chat.models.load(None if model_ref(ref) == STARTER else ref)


def _discard(parts: Parts, ref: str) -> None:
    """Delete an unfinished download. Runs in a thread."""
    try:
        local_cache.discard_partial(ref)
    except TqchatError as error:
        parts.host.call_from_thread(parts.say, str(error), "error")
    else:
        parts.host.call_from_thread(parts.say, f"The partial download of {ref} is deleted.")


def adapter(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Use the LoRA adapter of the argument in this conversation, or ask for one.

    Raises:
        AdapterUnusable: if the folder holds no adapter that mlx-lm can load.
    """
    if not argument:
        return _ask_for_adapter(parts)
    shown = parts.chat.shown
    match argument:
        case "off":
            shown.set_adapter(NO_ADAPTER)
            said = "This conversation uses no adapter."
        case "default":
            shown.set_adapter(None)
            said = "The adapter is left to the settings."
        case _:
            from tqchat.engine.models import adapters

            found = adapters.find(argument)
            shown.set_adapter(str(found.folder))
            said = f"This conversation uses the adapter {one_line(found.name)}."
    parts.say(said)
    parts.screen.figures_changed()
    return None


async def _ask_for_adapter(parts: Parts) -> None:
    own = parts.chat.shown.adapter
    explanation = "A folder that mlx-lm has trained, off for none, or default for the one in the settings."
    folder = await parts.ask(Ask("LoRA adapter of this conversation", own or "", explanation=explanation))
    if folder is not None:
        adapter(parts, folder)


def adapter_values(parts: Parts) -> Sequence[str]:
    """Arguments of ``/adapter``."""
    return ["off", "default"]


def update_picker(parts: Parts, event: events.Event) -> None:
    """Pass an engine event on to an open model picker."""
    picker = next((screen for screen in parts.host.screen_stack if isinstance(screen, ModelPicker)), None)
    if picker is None:
        return
    if isinstance(event, events.ModelEstimate):
        picker.estimated(event)
    elif isinstance(event, events.ModelProgress | events.ModelReady | events.ModelFailed):
        picker.progressed(parts.chat.models.loading)


def values(parts: Parts) -> Sequence[str]:
    """Arguments of ``/model``."""
    return [STARTER]
