"""Sampling settings: the conversation's, else the user's, else the model's."""

from __future__ import annotations

from dataclasses import replace

from tqchat.engine import commands
from tqchat.store.database import Conversation, Database, SamplingChoice
from tqchat.ui.controller.conversation.open_conversation import OpenConversation
from tqchat.ui.controller.engine.models import ModelState


class SamplingSettings:
    """Sampling of the shown conversation. ``defaults`` are the user's settings."""

    def __init__(
        self,
        database: Database,
        shown: OpenConversation,
        models: ModelState,
        defaults: commands.Sampling | None = None,
    ) -> None:
        self._database, self._shown, self._models = database, shown, models
        self.defaults = defaults or commands.Sampling()

    @property
    def choice(self) -> SamplingChoice:
        """The shown conversation's own settings."""
        conversation = self._shown.conversation
        return conversation.sampling if conversation else self._shown.new_conversation.sampling

    def set(self, choice: SamplingChoice) -> None:
        """Change them, from the next reply on."""
        if self._shown.conversation is None:
            self._shown.new_conversation.sampling = choice
        else:
            self._database.set_sampling(self._shown.conversation.id, choice)
            self._shown.reread()

    def of(self, conversation: Conversation) -> commands.Sampling:
        """The settings for a reply; ``None`` values are left to the model."""
        return replace(self.defaults, **conversation.sampling.given)  # type: ignore[arg-type]

    def inherited(self, name: str) -> str:
        """The value of a setting that the conversation leaves open: the user's, else the model's."""
        given = {other: value for other, value in self.choice.given.items() if other != name}
        chosen = replace(self.defaults, **given)  # type: ignore[arg-type]
        if self._models.current is not None:
            chosen = commands.resolve_sampling(chosen, self._models.current.sampling)
        value: float | None = getattr(chosen, name)
        if value is not None:
            return f"{value:g}"
        if name in ("seed", "xtc_threshold"):
            return "random" if name == "seed" else "0.1"
        return "the model's own" if self._models.current is None else "off"
