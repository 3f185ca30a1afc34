"""What is loaded and how its cache is kept: the pickers for models and for schemes."""

from __future__ import annotations

from textual import work

from tqchat.engine import commands, events
from tqchat.engine.commands import STARTER
from tqchat.engine.hub import catalog, local_cache
from tqchat.errors import TqchatError
from tqchat.kv.scheme import parse_scheme
from tqchat.ui.controller.engine import EngineLike
from tqchat.ui.look_actions import LookActions
from tqchat.ui.screens.models import ModelPicker, Wish
from tqchat.ui.screens.scheme import Choice, SchemePicker


class CacheActions(LookActions):
    """The actions on model and cache."""

    _engine: EngineLike | None = None

    @work
    async def action_scheme(self) -> None:
        """Choose the cache's scheme."""
        chat = self.chat
        picker = SchemePicker(
            chat.schemes.chosen,
            chat.caches.report,
            chat.caches.is_live,
            chat.schemes.auto_choice,
            chat.models.profile,
            chat.models.prefill_speed,
        )
        choice: Choice | None = await self.push_screen_wait(picker)
        if choice is not None:
            self._try(chat.schemes.set, choice.scheme, choice.reread)

    def action_use_scheme(self, name: str) -> None:
        """Change to a scheme without asking: for the palette."""
        self._try(self.chat.schemes.set, name)

    def action_undo_scheme(self) -> None:
        """Back to the scheme before, exactly."""
        if self._try(self.chat.schemes.undo) is False:
            self.say("The scheme has not been changed here since the model was loaded.")

    @work
    async def action_model(self) -> None:
        """Choose a model."""
        picker = ModelPicker(
            self.chat.models.current.ref if self.chat.models.current else None,
            parse_scheme(self.chat.schemes.in_force),
            look=lambda: catalog.scan(self.settings.model_folders),
            ask=lambda ref, folder: self._submit(commands.EstimateModel(ref, folder)),
            loading=self.chat.models.loading,
        )
        wish: Wish | None = await self.push_screen_wait(picker)
        match wish:
            case Wish(ref, "load"):
                self.load(ref)
            case Wish(_, "pause"):
                self.chat.models.pause_download()
            case Wish(ref, "discard"):
                self.chat.models.pause_download()
                self._discard(ref)

    def load(self, ref: str) -> None:
        """Load a model; the one before it stays until the new one is ready, or if it cannot be had."""
        self.chat.models.load(None if ref == STARTER else ref)

    def tell_picker(self, event: events.Event) -> None:
        """Pass on what a picker that is open should know."""
        picker = next((screen for screen in self.screen_stack if isinstance(screen, ModelPicker)), None)
        if picker is None:
            return
        if isinstance(event, events.ModelEstimate):
            picker.estimated(event)
        elif isinstance(event, events.ModelProgress | events.ModelReady | events.ModelFailed):
            picker.progressed(self.chat.models.loading)

    def _submit(self, command: commands.Command) -> None:
        if self._engine is not None:
            self._engine.submit(command)

    @work(thread=True)
    def _discard(self, ref: str) -> None:
        try:
            local_cache.discard_partial(ref)
        except TqchatError as error:
            self.call_from_thread(self.say, str(error), "error")
        else:
            self.call_from_thread(self.say, f"What had arrived of {ref} is thrown away.")
