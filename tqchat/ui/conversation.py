"""The chat itself, without a screen: what each thing a person does means for database and engine.

The screen calls the methods and draws what ``View`` is told; the engine's events come in through
``handle``. Everything here runs on the screen's thread.
"""

from __future__ import annotations

from tqchat.engine.commands import Sampling
from tqchat.errors import TqchatError
from tqchat.store.database import Conversation, Message, SamplingChoice, UnknownConversation
from tqchat.ui.room_making import RoomMaking
from tqchat.ui.state import SchemeWish, Waiting
from tqchat.ui.transcript import title_from


class Chat(RoomMaking):
    """Conversations, the one that is shown, and the replies under way."""

    def open(self, conversation_id: str) -> None:
        """Show a conversation, and let the engine bring its cache back as soon as it is free."""
        self.conversation = self.database.conversation(conversation_id)
        self.fork = None
        self._reread_rows()
        self.read_only = self._tenancy.take(self.conversation.id)
        self._let_go()
        self.view.transcript_changed()
        self._pump()

    def refresh(self) -> None:
        """Take in what another process has written, and the lease that it gave back."""
        if self.conversation and self.read_only:
            self.read_only = self._tenancy.take(self.conversation.id)
            if self.read_only is None:
                self.view.say("The other tqchat has closed this conversation; you can write here.")
                self.open(self.conversation.id)
        if not self.database.changed():
            return
        self.view.conversations_changed()
        if self.conversation is None or self.shown_reply or not self.read_only:
            return
        before = self.messages
        try:
            self._reread_rows()
        except UnknownConversation:
            self.new()
            self.view.say("This conversation was deleted in another tqchat.")
        else:
            if self.messages != before:
                self.view.transcript_changed()

    def send(self, text: str) -> bool:
        """Commit a message and have it answered. Whether it is on disk; if not, the person keeps the text."""
        if not text.strip() or self.shown_reply or self.shown_waiting or self.summing_up:
            return False
        try:
            if self.conversation is None:
                self.conversation = self._create(text)
            head = self.conversation.head_id
            if self.fork is not None:
                self.database.rewind_to(self.conversation.id, self.fork.parent_id)
            message = self.database.add_message(self.conversation.id, "user", text)
            if self.conversation.draft:
                self.database.set_draft(self.conversation.id, "")
        except TqchatError as error:
            self.view.say(str(error), "error")
            return False
        self._reread_rows()
        if self.fork is None:
            self.view.message_added(message)
        else:
            self.fork = None
            self.view.transcript_changed()
        self.view.conversations_changed()
        self._wait(Waiting(self.conversation.id, head, text))
        return True

    def _create(self, text: str) -> Conversation:
        """A conversation in the database, with the system prompt as its first message."""
        model = self.model.ref if self.model else None
        conversation = self.database.create(
            title_from(text),
            model,
            self._draft_scheme,
            system_prompt=self._draft_prompt or None,
            sampling=self._draft_sampling,
        )
        self._tenancy.take(conversation.id)
        self._draft = ""
        return conversation

    def keep_draft(self, text: str) -> None:
        """Remember what is typed and not sent."""
        if self.conversation is None:
            self._draft = text
        elif not self.read_only and text != self.conversation.draft:
            self.database.set_draft(self.conversation.id, text)
            self.conversation = self.database.conversation(self.conversation.id)

    def set_system_prompt(self, text: str | None) -> None:
        """What the model is told before the first message; it is re-read from there on."""
        if self.conversation is None:
            self._draft_prompt = text or None
        else:
            self.database.set_system_prompt(self.conversation.id, text or None)
            self._reread_rows()

    def set_sampling(self, choice: SamplingChoice) -> None:
        """How replies are drawn here, from the next one on."""
        if self.conversation is None:
            self._draft_sampling = choice
        else:
            self.database.set_sampling(self.conversation.id, choice)
            self._reread_rows()

    def undo_scheme(self) -> bool:
        """Go back to the scheme before the last change, by reading again. Whether there was a change."""
        before = self.scheme_before.get(self.conversation.id) if self.conversation else None
        if before is None:
            return False
        self.set_scheme(before, reread=True)
        return True

    def use_defaults(self, scheme: str, system_prompt: str | None, sampling: Sampling) -> None:
        """Other settings: for new conversations, an empty page included, and for replies to come."""
        if self._draft_scheme == self.default_scheme:
            self._draft_scheme = scheme
        if self._draft_prompt == self.default_prompt:
            self._draft_prompt = system_prompt
        self.default_scheme, self.default_prompt, self.sampling = scheme, system_prompt, sampling
        self._chosen.clear()

    def delete_message(self, message: Message) -> bool:
        """Delete one message of the shown conversation; whether it could be done now."""
        if not self.can_change:
            return False
        self._removed.append(self.database.delete_message(message.id))
        self.fork = None
        self._reread_rows()
        self.view.transcript_changed()
        return True

    def undelete(self) -> bool:
        """Bring back what was deleted last, a message or a conversation; whether there was anything."""
        while self._removed:
            removed = self._removed[-1]
            if removed is None:
                self._removed.pop()
                break
            if self.reply and self.reply.conversation_id == removed.message.conversation_id:
                return False
            self._removed.pop()
            self.database.restore_message(removed)
            self.open(removed.message.conversation_id)
            return True
        deleted = self.database.deleted()
        if not deleted:
            return False
        self.database.undelete(deleted[0].id)
        self.open(deleted[0].id)
        self.view.conversations_changed()
        return True

    def stop(self) -> bool:
        """Stop what goes on here: a waiting message, the reply, a download. Whether there was anything."""
        for waiting in self.waiting:
            if self._shown(waiting.conversation_id):
                self.waiting.remove(waiting)
                self._unsend(waiting.conversation_id, waiting.head_before, waiting.returns)
                return True
        if self._engine and self.reply and self.shown_reply:
            self.reply.stopping = True
            self._engine.stop()
            self.view.figures_changed()
            return True
        if self._engine and self.activity in ("opening", "converting", "summing up"):
            self._engine.stop()
            return True
        return self.pause_download()

    def rename(self, title: str) -> None:
        """Give the shown conversation a title of the person's own."""
        title = " ".join(title.split())
        if self.conversation and title:
            self.database.rename(self.conversation.id, title)
            self._reread_rows()
            self.view.conversations_changed()

    def set_scheme(self, scheme: str, reread: bool = False) -> None:
        """Change the scheme here. A live cache is converted (or read again) as soon as the engine is free."""
        if self.conversation is None:
            self._draft_scheme = scheme
        elif self.read_only:
            self.view.say(self.read_only, "warning")
        elif not self.has_cache or (
            not reread and self._resolved(self.conversation.id, scheme) == self.scheme_in_force
        ):
            self.database.set_scheme(self.conversation.id, scheme)
            self._reread_rows()
        else:
            self._wish = SchemeWish(self.conversation.id, scheme, reread)
            self._pump()
            if self._wish is not None:
                when = "once the model is loaded" if self.model is None else "when this reply is done"
                self.view.say(f"Changes to {scheme} {when}.")
        self.view.figures_changed()
