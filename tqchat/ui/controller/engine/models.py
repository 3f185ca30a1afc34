"""The loaded model, the one being loaded, and the memory budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tqchat.engine import commands, events
from tqchat.engine.memory.quality_profile import Profile
from tqchat.ui.controller.engine.connection import EngineConnection
from tqchat.ui.controller.view import View

PREFILL_SPEED_MIN_TOKENS = 32
"""Shorter prefills give no usable speed."""


class ModelState:
    """Loads models; the state of the current one.

    Attributes:
        current: The loaded model.
        loading: Progress of the model being downloaded or loaded.
        profile: Measurements of the current model, if there are any.
        prefill_speed: Tokens per second of the last prefill by this model.
        memory_budget: Bytes that the user allows a conversation's cache; ``None`` leaves it to the model.
    """

    def __init__(
        self,
        engine: EngineConnection,
        view: View,
        profiles: Callable[[events.ModelInfo], Profile | None] = lambda model: None,
    ) -> None:
        self._engine, self._view, self._profiles = engine, view, profiles
        self._paused_ref: str | None = None
        self.current: events.ModelInfo | None = None
        self.loading: events.ModelProgress | None = None
        self.profile: Profile | None = None
        self.prefill_speed: float | None = None
        self.memory_budget: int | None = None

    @property
    def is_loading(self) -> bool:
        """Whether weights are being loaded, so that the engine can do nothing else."""
        return self.loading is not None and self.loading.stage == "loading"

    def label(self, adapter: str | None) -> str:
        """The loaded model's name with the adapter that a conversation chose; empty without a model.

        Args:
            adapter: As in ``Conversation.adapter``; ``None`` is the one that the model was loaded with.
        """
        if self.current is None:
            return ""
        if adapter is None:
            return self.current.label
        return self.current.label_with(None if adapter == commands.NO_ADAPTER else Path(adapter).name)

    @property
    def context_limit(self) -> int | None:
        """The current model's context limit in tokens, if it states one."""
        return self.current.context_limit if self.current else None

    @property
    def memory_budget_in_force(self) -> int | None:
        """Bytes that one conversation's cache may take: the user's setting, else the model's."""
        return self.memory_budget or (self.current.memory_budget if self.current else None)

    def announce(self, ref: str | None) -> None:
        """Show a model as being loaded: the engine that will load it is still being started."""
        self.loading = events.ModelProgress(commands.model_ref(ref), "loading")

    def load(self, ref: str | None) -> None:
        """Load another model; the current one stays until the new one is ready."""
        if self._engine.connected:
            self.announce(ref)
            self._engine.submit(commands.LoadModel(ref))
            self._view.figures_changed()

    def pause_download(self) -> bool:
        """Cancel a download and keep its files; whether there was one."""
        if self.loading is None or self.loading.stage != "downloading":
            return False
        self._paused_ref = self.loading.ref
        self._engine.cancel_download()
        return True

    def progressed(self, event: events.ModelProgress) -> None:
        """A model is downloaded or loaded further."""
        self.loading = event

    def ready(self, event: events.ModelReady) -> None:
        """Another model is loaded."""
        self.current, self.loading = event.info, None
        self.profile, self.prefill_speed = self._profiles(event.info), None

    def failed(self, event: events.ModelFailed) -> None:
        """A model could not be loaded, or its download was paused."""
        self.loading = None
        paused, self._paused_ref = self._paused_ref, None
        if event.ref == paused:
            self._view.say(f"The download of {event.ref} is paused; load the model again to resume it.")
        else:
            stays = f" {self.current.name} stays." if self.current else ""
            self._view.say(f"{event.message}{stays}", "error")

    def measured(self, event: events.Done) -> None:
        """Take the prefill speed of a finished reply."""
        if event.counts.prefilled >= PREFILL_SPEED_MIN_TOKENS:
            self.prefill_speed = event.prompt_tokens_per_second
