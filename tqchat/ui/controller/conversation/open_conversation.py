"""The conversation that is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tqchat.store.database import (
    Conversation,
    Database,
    Message,
    SamplingChoice,
    UnknownConversation,
    VersionPosition,
)
from tqchat.store.records import ThinkingChoice
from tqchat.ui.controller.conversation.leases import ConversationLeases
from tqchat.ui.controller.engine.work import EngineWork
from tqchat.ui.controller.records import Fork
from tqchat.ui.controller.view import View


@dataclass
class NewConversation:
    """Choices for a conversation that is not in the database yet: it is created with its first message."""

    scheme: str
    system_prompt: str | None
    sampling: SamplingChoice = field(default_factory=SamplingChoice)
    thinking: ThinkingChoice | None = None
    thinking_budget: int | None = None
    adapter: str | None = None


class OpenConversation:
    """Which conversation is shown, and its rows of the database.

    Attributes:
        conversation: ``None`` for a new conversation.
        messages: The shown branch.
        places: Of each message, its position among its versions.
        read_only: Why it cannot be written, ``None`` if it can.
        fork: Where the next message begins a branch, if not at the end.
        new_conversation: Choices for a new conversation.
        new_text: Unsent text for a new conversation.
        default_scheme: The scheme that new conversations start with.
        default_system_prompt: Likewise.
    """

    def __init__(
        self,
        database: Database,
        view: View,
        leases: ConversationLeases,
        work: EngineWork,
        *,
        scheme: str,
        system_prompt: str | None = None,
        on_branch_changed: Callable[[str], None] = lambda conversation_id: None,
    ) -> None:
        self._database, self._view, self._leases, self._work = database, view, leases, work
        self._on_branch_changed = on_branch_changed
        self.new_text = ""
        self.conversation: Conversation | None = None
        self.messages: list[Message] = []
        self.places: dict[str, VersionPosition] = {}
        self.read_only: str | None = None
        self.fork: Fork | None = None
        self.default_scheme, self.default_system_prompt = scheme, system_prompt
        self.new_conversation = NewConversation(scheme, system_prompt)

    @property
    def id(self) -> str | None:
        """The id of the shown conversation, ``None`` for a new one."""
        return self.conversation.id if self.conversation else None

    @property
    def is_written(self) -> bool:
        """Whether all of the shown conversation is in the file."""
        return self.conversation is None or self._database.is_written(self.conversation.id)

    def is_shown(self, conversation_id: str) -> bool:
        """Whether this conversation is the shown one."""
        return self.id == conversation_id

    @property
    def system_prompt(self) -> str | None:
        """The system prompt of the shown conversation, or of the new one."""
        return self.conversation.system_prompt if self.conversation else self.new_conversation.system_prompt

    @property
    def adapter(self) -> str | None:
        """The LoRA adapter that the shown conversation or the new one has chosen."""
        return self.conversation.adapter if self.conversation else self.new_conversation.adapter

    @property
    def unsent_text(self) -> str:
        """The text in the prompt that was not sent here."""
        return self.conversation.draft if self.conversation else self.new_text

    def open(self, conversation_id: str) -> None:
        """Show a conversation; the engine restores its cache as soon as it is free."""
        self.conversation = self._database.conversation(conversation_id)
        self.fork = None
        self.reread()
        self.read_only = self._leases.acquire(self.conversation.id)
        self._leases.release_unused()
        self._view.transcript_changed()
        self._work.start_next()

    def new(self) -> None:
        """Show a new, empty conversation."""
        self.conversation, self.messages, self.places = None, [], {}
        self.fork = self.read_only = None
        self.new_conversation = NewConversation(self.default_scheme, self.default_system_prompt)
        self._leases.release_unused()
        self._view.transcript_changed()

    def create(self, title: str, model: str | None) -> Conversation:
        """Write the new conversation to the database and show it."""
        new = self.new_conversation
        self.conversation = self._database.create(
            title,
            model,
            new.scheme,
            system_prompt=new.system_prompt or None,
            sampling=new.sampling,
            thinking=new.thinking,
            thinking_budget=new.thinking_budget,
            adapter=new.adapter,
        )
        self._leases.acquire(self.conversation.id)
        self.new_text = ""
        return self.conversation

    def reread(self) -> None:
        """Read the shown conversation from the database again."""
        if self.conversation is None:
            return
        before = [one.id for one in self.messages if one.conversation_id == self.conversation.id]
        self.conversation = self._database.conversation(self.conversation.id)
        self.messages = self._database.messages(self.conversation.id)
        if [one.id for one in self.messages[: len(before)]] != before:
            self._on_branch_changed(self.conversation.id)
        self.places = self._database.version_positions(self.conversation.id)

    def refresh(self) -> None:
        """Show what another process has written, and take over the lease that it has released."""
        if changed := self._database.changed():
            self._view.conversations_changed()
        if self.conversation is None or not self.read_only:
            return
        try:
            self.read_only = self._leases.acquire(self.conversation.id)
            if self.read_only is None:
                self.open(self.conversation.id)
                self._view.say("The other tqchat has closed this conversation; you can write here.")
            elif changed and not self._is_being_answered:
                before = self.messages
                self.reread()
                if self.messages != before:
                    self._view.transcript_changed()
        except UnknownConversation:
            self.new()
            self._view.say("This conversation was deleted in another tqchat.")

    @property
    def _is_being_answered(self) -> bool:
        return self._work.reply is not None and self.is_shown(self._work.reply.conversation_id)

    def keep_unsent_text(self, text: str) -> None:
        """Save the text that is typed and not sent."""
        if self.conversation is None:
            self.new_text = text
        elif not self.read_only and text != self.conversation.draft:
            self._database.set_draft(self.conversation.id, text)
            self.conversation = self._database.conversation(self.conversation.id)

    def rename(self, title: str) -> None:
        """Set a title, which automatic titles no longer replace."""
        title = " ".join(title.split())
        if self.conversation and title:
            self._database.rename(self.conversation.id, title)
            self.reread()
            self._view.conversations_changed()

    def set_system_prompt(self, text: str | None) -> None:
        """Set the system prompt; the cache is re-read from it on."""
        if self.conversation is None:
            self.new_conversation.system_prompt = text or None
        else:
            self._database.set_system_prompt(self.conversation.id, text or None)
            self.reread()

    def set_adapter(self, adapter: str | None) -> None:
        """Set the LoRA adapter: the engine opens the conversation again with it, as soon as it is free.

        Args:
            adapter: As in ``Conversation.adapter``.
        """
        if self.conversation is None:
            self.new_conversation.adapter = adapter
        elif adapter != self.conversation.adapter:
            self._database.set_adapter(self.conversation.id, adapter)
            self.reread()
            self._work.closed(self.conversation.id)
            self._work.start_next()

    def use_defaults(self, scheme: str, system_prompt: str | None) -> None:
        """Change the defaults, also for a new conversation that has not decided otherwise."""
        if self.new_conversation.scheme == self.default_scheme:
            self.new_conversation.scheme = scheme
        if self.new_conversation.system_prompt == self.default_system_prompt:
            self.new_conversation.system_prompt = system_prompt
        self.default_scheme, self.default_system_prompt = scheme, system_prompt
