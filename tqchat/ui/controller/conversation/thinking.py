"""Reasoning settings: the conversation's, else the user's."""

from __future__ import annotations

from tqchat.engine import commands
from tqchat.store.database import Conversation, Database
from tqchat.store.records import ThinkingChoice
from tqchat.ui.controller.conversation.open_conversation import OpenConversation
from tqchat.ui.controller.engine.models import ModelState


class ThinkingSettings:
    """Whether and how much the model reasons. ``defaults`` are the user's settings."""

    def __init__(
        self,
        database: Database,
        shown: OpenConversation,
        models: ModelState,
        defaults: commands.Thinking | None = None,
    ) -> None:
        self._database, self._shown, self._models = database, shown, models
        self.defaults = defaults or commands.Thinking()

    @property
    def own(self) -> ThinkingChoice | None:
        """The shown conversation's own choice."""
        conversation = self._shown.conversation
        return conversation.thinking if conversation else self._shown.new_conversation.thinking

    @property
    def choice(self) -> ThinkingChoice | None:
        """The setting in force for the shown conversation; ``None`` leaves it to the model."""
        return self.own or self.defaults.choice

    @property
    def label(self) -> str:
        """``off``; ``default (on)`` if it is left to the model and the model's default is known."""
        default = self._models.current.thinking_default if self._models.current else None
        return self.choice or (f"default ({default})" if default else "default")

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of the loaded model's switch; empty without a switch."""
        return self._models.current.thinking_choices if self._models.current else ()

    def set(self, choice: ThinkingChoice | None) -> None:
        """Change it in the shown conversation, from the next reply on; ``None`` leaves it to the settings."""
        conversation = self._shown.conversation
        if conversation is None:
            self._shown.new_conversation.thinking = choice
        else:
            self._database.set_thinking(conversation.id, choice, conversation.thinking_budget)
            self._shown.reread()

    def set_budget(self, budget: int | None) -> None:
        """Change the maximum length of the reasoning in tokens; ``None`` leaves it to the settings."""
        conversation = self._shown.conversation
        if conversation is None:
            self._shown.new_conversation.thinking_budget = budget
        else:
            self._database.set_thinking(conversation.id, conversation.thinking, budget)
            self._shown.reread()

    def of(self, conversation: Conversation) -> commands.Thinking:
        """The settings for a conversation's prompts and replies."""
        budget = conversation.thinking_budget
        return commands.Thinking(
            conversation.thinking or self.defaults.choice, self.defaults.budget if budget is None else budget
        )
