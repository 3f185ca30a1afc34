"""What a person does to conversations: begin, open, find, rename, delete, bring back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from textual import on, work

from tqchat.paths import Paths
from tqchat.settings import State
from tqchat.store.database import Conversation, Database
from tqchat.store.search import query_words
from tqchat.text import one_line
from tqchat.ui import attachments, slash
from tqchat.ui.message_actions import MessageActions
from tqchat.ui.screens.dialog import Ask, Confirm
from tqchat.ui.widgets.chat.welcome import EXAMPLES
from tqchat.ui.widgets.conversations.list import ConversationList
from tqchat.ui.widgets.prompt.prompt import Prompt


class ConversationActions(MessageActions):
    """The actions on conversations, and what is remembered of where the person is."""

    _insisted = ""
    paths: Paths
    state: State
    database: Database

    def _remember(self, state: State | None = None) -> None:
        """Write down what the next start needs, at once: a killed app should come back where it was."""
        current = self.chat.shown.conversation
        state = replace(state or self.state, conversation=current.id if current else None)
        if state != self.state:
            self.state = state
            state.save(self.paths)

    @on(Prompt.Submitted)
    def _send(self, message: Prompt.Submitted) -> None:
        if (command := slash.read(message.text)) is not None:
            if self.run_slash(*command):
                self.prompt.clear_sent()
            return
        text = self._with_files(slash.message(message.text), message.typed)
        if text is None:
            return
        if self.has_room_for(text):
            self.send_now(text)

    def send_now(self, text: str) -> None:
        """Send a message, and leave the prompt empty; if it cannot be sent, it stays there."""
        if self.chat.turns.send(text):
            self.prompt.clear_sent()
            self._remember()
        elif self.chat.turns.shown_reply or self.chat.turns.shown_waiting or self.chat.context.summing_up:
            self._chat_screen.say("One message at a time: Esc stops what goes on.", "warning")

    def has_room_for(self, text: str) -> bool:
        """Whether the model can read a message with what is before it."""
        raise NotImplementedError

    def _with_files(self, text: str, typed: str) -> str | None:
        """A message with the files that it names; ``None`` if one cannot be had, which is said.

        A name that leads nowhere is sent as it is written by sending again.
        """
        fork, earlier = self.chat.shown.fork, []
        if fork is not None and fork.edited_id is not None:
            edited = next((one for one in self.chat.shown.messages if one.id == fork.edited_id), None)
            earlier = attachments.split(edited.content)[1] if edited else []
        try:
            files = attachments.named(typed, Path.cwd(), earlier, strict=typed != self._insisted)
        except attachments.CannotAttach as error:
            self._insisted = typed if error.may_insist else ""
            self.say(f"{error} Enter again sends it as it is." if error.may_insist else str(error), "warning")
            return None
        self._insisted = ""
        return attachments.join(text, files)

    @on(ConversationList.Chosen)
    def _open(self, message: ConversationList.Chosen) -> None:
        self._switch(self.chat.shown.open, message.conversation_id)
        self._chat_screen.close_overlays()
        self.prompt.focus()
        if message.message_id is not None:
            self._try(self.chat.tree.show_message, message.message_id)
            self.log_view.reveal(message.message_id, query_words(message.wanted))

    def run_slash(self, name: str, argument: str) -> bool:
        """Do what a command in the prompt says; whether it leaves the prompt."""
        raise NotImplementedError

    def _switch(self, deed: Callable[..., None], *arguments: object) -> None:
        """Go to another conversation; what is half written stays behind with this one."""
        self._keep_draft()
        self._try(deed, *arguments)
        self.prompt.put(self.chat.shown.unsent_text)
        self._remember()

    def _keep_draft(self) -> None:
        edits = self.chat.shown.fork is not None and self.chat.shown.fork.edited_id is not None
        self._try(self.chat.shown.keep_unsent_text, self._put_aside if edits else self.prompt.whole)

    def action_example(self, index: int) -> None:
        """Put one of the welcome's examples into the prompt."""
        self.prompt.put(EXAMPLES[index])
        self.prompt.focus()

    def action_new(self) -> None:
        """Start with an empty page."""
        self._switch(self.chat.shown.new)
        self._chat_screen.close_overlays()
        self.prompt.focus()

    def action_previous(self) -> None:
        """Open the conversation above this one in the list."""
        self._step(-1)

    def action_next(self) -> None:
        """Open the one below."""
        self._step(1)

    def _step(self, step: int) -> None:
        ids = [one.id for one in self._try(self.database.conversations) or ()]
        current = self.chat.shown.conversation
        index = ids.index(current.id) + step if current and current.id in ids else 0
        if 0 <= index < len(ids):
            self._switch(self.chat.shown.open, ids[index])
        elif index < 0:
            self._switch(self.chat.shown.new)

    @work
    async def action_rename(self) -> None:
        """Ask for another title."""
        if self.chat.shown.conversation is None:
            self._chat_screen.say("A conversation has a title from its first message on.")
            return
        title = await self.push_screen_wait(Ask("Title", one_line(self.chat.shown.conversation.title)))
        if title:
            self._try(self.chat.shown.rename, one_line(title))

    @work
    async def action_delete(self) -> None:
        """Delete the conversation, after asking."""
        conversation = self._to_delete()
        if conversation is None:
            return
        question = (
            f"“{one_line(conversation.title)}”: its cache goes now, its messages can be had back for a day."
        )
        if await self.push_screen_wait(Confirm("Delete this conversation?", question, "delete")):
            shown = (
                self.chat.shown.conversation is not None
                and self.chat.shown.conversation.id == conversation.id
            )
            self._try(self.chat.deletion.delete, conversation.id)
            if shown:
                self.prompt.put(self.chat.shown.unsent_text)
            title, key = one_line(conversation.title), self.key("undelete")
            self.say(f"Deleted “{title}”. {key} brings it back.")

    def _to_delete(self) -> Conversation | None:
        """The one under the list's cursor while the list has the keys, else the one that is open."""
        return self._chat_screen.query_one(ConversationList).marked or self.chat.shown.conversation

    def action_undelete(self) -> None:
        """Bring back what was deleted last."""
        self._keep_draft()
        if self._try(self.chat.deletion.undo) is False:
            self.say("Nothing was deleted in the last day.")
        self.prompt.put(self.chat.shown.unsent_text)

    def action_search(self) -> None:
        """Look for words in titles and messages."""
        self.search_for("")

    def search_for(self, text: str) -> None:
        """Show the list with what has these words."""
        found = self._chat_screen.query_one(ConversationList)
        if not found.is_on_screen or not found.display or found.has_class("folded"):
            self.action_toggle_list()
        found.search_for(text)

    def action_toggle_list(self) -> None:
        """Show or hide the conversations."""
        shown = self._chat_screen.toggle("#conversations")
        if not self._chat_screen.is_narrow:
            self._remember(replace(self.state, sidebar=shown))

    def action_toggle_gauge(self) -> None:
        """Show or hide the gauge."""
        shown = self._chat_screen.toggle("#gauge")
        if self._chat_screen.has_class("-wide"):
            self._remember(replace(self.state, gauge=shown))
