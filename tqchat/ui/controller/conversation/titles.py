"""Automatic titles from the model."""

from __future__ import annotations

from tqchat.engine import commands, events
from tqchat.errors import TqchatError
from tqchat.store.database import Database
from tqchat.ui.controller.conversation.open_conversation import OpenConversation
from tqchat.ui.controller.engine.connection import EngineConnection
from tqchat.ui.controller.engine.models import ModelState
from tqchat.ui.controller.engine.work import EngineWork
from tqchat.ui.controller.texts.titles import ANSWER_MAX_TOKENS, title_from_answer, title_request
from tqchat.ui.controller.view import View

AUTO_TITLE_MAX_MESSAGES = 6
"""Longer conversations keep the title they have."""
AUTO_TITLE_MIN_WEIGHT_BYTES = 700_000_000
"""Titles of smaller models are worse than the first words of a message: the bundled one (540 MB on a CPU)
answers the question instead."""


class Titles:
    """Asks the model once for a conversation's title, while the engine is free."""

    def __init__(
        self,
        database: Database,
        view: View,
        engine: EngineConnection,
        shown: OpenConversation,
        models: ModelState,
        work: EngineWork,
    ) -> None:
        self._database, self._view, self._engine = database, view, engine
        self._shown, self._models, self._work = shown, models, work
        self._requested: set[str] = set()

    def request(self, conversation_id: str) -> None:
        """Ask for a title, if the conversation is short and its title automatic."""
        model = self._models.current
        if model is None or self._work.activity is not None or self._work.waiting:
            return
        if model.weight_bytes < AUTO_TITLE_MIN_WEIGHT_BYTES or conversation_id in self._requested:
            return
        conversation = self._database.conversation(conversation_id)
        if not conversation.title_is_automatic:
            return
        messages = [one for one in self._database.messages(conversation_id) if one.role != "system"]
        if 2 <= len(messages) <= AUTO_TITLE_MAX_MESSAGES and messages[-1].role == "assistant":
            self._requested.add(conversation_id)
            request = title_request(messages)
            self._engine.submit(
                commands.Compose(
                    conversation_id, "title", request, ANSWER_MAX_TOKENS, adapter=conversation.adapter
                )
            )

    def answered(self, event: events.Composed) -> None:
        """Take a title, if it is fit for a list and the user has not set one."""
        if not event.text:
            self._requested.discard(event.conversation_id)  # interrupted: ask again after the next reply
            return
        title = title_from_answer(event.text)
        try:
            if title and self._database.conversation(event.conversation_id).title_is_automatic:
                self._database.rename(event.conversation_id, title, automatic=True)
                self._shown.reread()
                self._view.conversations_changed()
        except TqchatError:
            pass  # Deleted, or in use by another process by now: no title is needed.
