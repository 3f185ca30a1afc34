"""What a person does to messages: a cursor over them, versions, branches, copies."""

from __future__ import annotations

from textual import on, work

from tqchat.store.database import Message
from tqchat.text import one_line
from tqchat.ui import attachments, clipboard, figures
from tqchat.ui.base import ChatApp
from tqchat.ui.controller.texts.reasoning import split
from tqchat.ui.controller.texts.transcript import as_markdown, code_blocks
from tqchat.ui.screens.dialog import Choose, Confirm
from tqchat.ui.widgets.chat.log import ChatLog
from tqchat.ui.widgets.status.bars import Hints

BUSY = "Not while this is being answered: Esc stops it."


class MessageActions(ChatApp):
    """The actions on messages, for keys, palette and slash commands alike."""

    _put_aside = ""

    # The cursor

    def action_cursor_up(self) -> None:
        """Put the cursor on the last message, or on the one above."""
        self.log_view.move_mark(-1)

    def action_cursor_down(self) -> None:
        """Put the cursor on the message below; past the last one lies the prompt."""
        if not self.log_view.move_mark(1):
            self.prompt.focus()

    def action_on_message(self, deed: str) -> None:
        """Do something to the marked message, else to the last one: for the palette, which has no cursor."""
        if self.log_view.marked is None and not self.log_view.move_mark(-1):
            self.say("There is no message yet.")
        else:
            self.log_view.action_ask(deed)

    @on(ChatLog.Marked)
    def _marked(self, event: ChatLog.Marked) -> None:
        self._chat_screen.query_one(Hints).for_message(event.message is not None)
        if event.message is None and self.log_view.has_focus:
            self.prompt.focus()

    @on(ChatLog.Asked)
    def _asked(self, event: ChatLog.Asked) -> None:
        """A key on the marked message."""
        message = event.message
        match event.deed:
            case "open_message":
                self._open_message(message)
            case "edit":
                self._edit(message)
            case "branch":
                self._fork(message)
            case "answer":
                if self._try(self.chat.turns.regenerate, message) is False:
                    self.say(BUSY, "warning")
            case "go_on":
                self.action_continue()
            case "copy_message":
                self._copy(_said(message), "the message")
            case "copy_code":
                self._choose_code(message)
            case "delete_message":
                self._delete_message(message)
            case "unfold":
                self.log_view.unfold()
            case "version_before":
                self._step_version(message, -1)
            case "version_after":
                self._step_version(message, 1)

    def _open_message(self, message: Message) -> None:
        if message.role == "user":
            self._fork(message)
        else:
            self.log_view.unfold()

    def _edit(self, message: Message) -> None:
        if message.role == "user":
            self._fork(message)
        else:
            self.say("Only your own messages can be edited; r has this one answered again.")

    @work
    async def _delete_message(self, message: Message) -> None:
        """Delete one message, after asking."""
        if not self.chat.tree.can_change:
            self.say(BUSY, "warning")
            return
        words = one_line(_said(message))
        shown = words if len(words) <= 120 else f"{words[:120]}…"
        question = f"“{shown}”\n\nWhat follows it stays. The model reads again from there on."
        if await self.push_screen_wait(Confirm("Delete this message?", question, "delete")):
            self.log_view.mark(None)
            if self._try(self.chat.deletion.delete_message, message):
                self.say(f"Deleted. {self.key('undelete')} brings it back.")
            self.prompt.focus()

    # Branches

    def _fork(self, message: Message) -> None:
        text = self.chat.tree.fork_at(message)
        if text is None:
            self.say(BUSY, "warning")
            return
        self._put_aside = self.prompt.whole
        if text:
            self.prompt.put(attachments.split(text)[0])
        self.log_view.mark(None)
        self.prompt.focus()

    def _leave_fork(self) -> bool:
        """Leave all as it is; what had been written before the edit comes back."""
        edited = self.chat.shown.fork is not None and self.chat.shown.fork.edited_id is not None
        if not self.chat.tree.leave_fork():
            return False
        if edited:
            self.prompt.put(self._put_aside)
        return True

    def action_regenerate(self) -> None:
        """Have the last message answered again."""
        if self._try(self.chat.turns.regenerate) is False:
            self.say("There is nothing to answer again now.")

    def action_continue(self) -> None:
        """Let a reply that was cut off go on."""
        if self._try(self.chat.turns.continue_reply) is False:
            self.say("Only the last reply can go on, and only where it was cut off.")

    def action_previous_version(self) -> None:
        """The version before, of the marked message or the last that has several."""
        self._step_version(None, -1)

    def action_next_version(self) -> None:
        """The version after."""
        self._step_version(None, 1)

    def _step_version(self, message: Message | None, step: int) -> None:
        marked = message or self.log_view.marked
        target = marked or self._try(self.chat.tree.latest_with_versions)
        if target is None:
            self.say("Nothing here has another version yet.")
            return
        reached = self._try(self.chat.tree.step_version, target.id, step)
        if reached is None:
            version, versions = self.chat.tree.version(target)
            self.say(f"This is version {version} of {versions}." if self.chat.tree.can_change else BUSY)
        elif marked is not None:
            self.call_after_refresh(self.log_view.mark, reached.id)

    # Copies

    def action_copy_reply(self) -> None:
        """Copy the last reply."""
        if (reply := self._last_reply()) is not None:
            self._copy(_said(reply), "the reply")

    def action_copy_last_code(self) -> None:
        """Copy the last block of code of the last reply."""
        if (reply := self._last_reply()) is not None:
            self._copy_code(reply)

    def action_copy_chat(self) -> None:
        """Copy all of the conversation."""
        name = self.chat.models.current.name if self.chat.models.current else "assistant"
        self._copy(as_markdown(self.chat.shown.messages, name), "the chat")

    def _last_reply(self) -> Message | None:
        found = next((one for one in reversed(self.chat.shown.messages) if one.role == "assistant"), None)
        if found is None:
            self.say("There is no reply to copy yet.")
        return found

    @work
    async def _choose_code(self, message: Message) -> None:
        """Copy a block of code; where there are several, the person says which."""
        found = code_blocks(message.content)
        if len(found) < 2:
            self._copy_code(message)
            return
        names = [f"{number} {language}".rstrip() for number, (language, _) in enumerate(found, 1)]
        firsts = [one_line(text.lstrip().partition("\n")[0])[:60] for _, text in found]
        chosen = await self.push_screen_wait(
            Choose("Copy which block?", list(zip(names, firsts, strict=True)), names[-1])
        )
        if chosen is not None:
            self._copy(found[names.index(chosen)][1], f"block {names.index(chosen) + 1}")

    def _copy_code(self, message: Message) -> None:
        found = code_blocks(message.content)
        if not found:
            self.say("There is no block of code in it.")
        else:
            self._copy(found[-1][1], "the code")

    def _copy(self, text: str, what: str) -> None:
        if not text.strip():
            self.say("There is nothing to copy yet.")
            return
        self.copy_to_clipboard(text)
        self.run_worker(lambda: clipboard.write(text), thread=True)
        self.say(f"Copied {what}, {figures.number(len(text))} characters.")


def _said(message: Message) -> str:
    """What is copied of a message: its words, without the thinking before them."""
    return message.content if message.role == "user" else split(message.content)[1] or message.content
