"""The main screen: draws the chat's state, holds none of its own."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Key, Paste
from textual.message import Message as Posted
from textual.screen import Screen
from textual.selection import Selection
from textual.widget import Widget

from tqchat.engine.events import TextDelta
from tqchat.kv.scheme import parse_scheme
from tqchat.store.database import Message
from tqchat.ui import figures
from tqchat.ui.actions.keys import Keys
from tqchat.ui.controller.controller import Controller
from tqchat.ui.controller.records import Fork, Reply
from tqchat.ui.controller.view import Severity
from tqchat.ui.input import attachments
from tqchat.ui.widgets.chat.body import Body
from tqchat.ui.widgets.chat.log import ChatLog
from tqchat.ui.widgets.chat.message import Facts
from tqchat.ui.widgets.chat.welcome import Welcome
from tqchat.ui.widgets.conversations.list import ConversationList
from tqchat.ui.widgets.gauge.line import GaugeLine
from tqchat.ui.widgets.gauge.panel import GaugePanel
from tqchat.ui.widgets.gauge.reading import Reading
from tqchat.ui.widgets.prompt.attached import AttachedFiles
from tqchat.ui.widgets.prompt.prompt import Prompt
from tqchat.ui.widgets.prompt.suggestions import Suggestions
from tqchat.ui.widgets.status.bars import Hints, NoticeLine, StatusLine, TopBar, doing

MIN_CHAT_COLUMNS = 80
"""Width of the conversation that the gauge leaves; otherwise only its line is shown."""
DRAWS_PER_SECOND = 4
"""Maximum draws of figures and list per second."""


class ChatScreen(Screen[None]):
    """Conversation list, conversation and gauge; on narrow terminals the side panels are overlays.

    Implements the chat's ``View``.
    """

    class Ready(Posted):
        """The widgets are mounted."""

    class ContextFull(Posted):
        """The shown conversation exceeds the context limit."""

    def __init__(self, keys: Keys) -> None:
        super().__init__(id="chat")
        self._keys = keys
        self.chat: Controller | None = None
        self._figures_due = self._list_due = True
        self._first_run = False

    def compose(self) -> ComposeResult:
        """Title, list, conversation, gauge, status, keys."""
        yield TopBar()
        with Horizontal(id="body"):
            yield ConversationList()
            with Vertical(id="centre"):
                yield Welcome()
                yield ChatLog(self._keys.bindings("message"))
                yield NoticeLine()
                yield GaugeLine()
                yield Suggestions()
                yield AttachedFiles()
                yield Prompt()
            with VerticalScroll(id="gauge"):
                yield GaugePanel()
        yield StatusLine(self._keys.label)
        yield Hints(self._keys)

    def on_mount(self) -> None:
        """Focus the prompt and start drawing."""
        self.query_one(Prompt).focus()
        self.set_interval(1 / DRAWS_PER_SECOND, self.draw_due)
        self.post_message(self.Ready())

    def on_resize(self) -> None:
        """Redraw the gauge: panel or line depends on the width."""
        self.place_panels()

    def on_conversation_list_more(self) -> None:
        """List more conversations."""
        self._list_due = True
        self.draw_due()

    # Selected text

    def watch_selections(self, before: dict[Widget, Selection], now: dict[Widget, Selection]) -> None:
        """Show what can be done with the selected text."""
        self.query_one(Hints).for_selection(bool(now))

    def get_selected_text(self) -> str | None:
        """The selected text as it was written; of the conversation, if some of that is selected."""
        chosen = [(body, one) for body, one in self.selections.items() if isinstance(body, Body)]
        for asides in (False, True):
            texts = [
                (body.joint, text)
                for body, one in chosen
                if body.is_attached and (text := body.selected_text(one, asides))
            ]
            if texts:
                return texts[0][1] + "".join(joint + text for joint, text in texts[1:])
        return super().get_selected_text() or None

    def _key_escape(self) -> None:
        """Leave Esc to the action ``stop``: Textual would clear the selection and then stop the reply."""

    def action_copy_text(self) -> None:
        """Copy the selected text, and say how much it is."""
        super().action_copy_text()
        self.say(f"Copied {figures.text_size(self.get_selected_text() or '')}.")

    def on_text_selected(self) -> None:
        """Text was selected with the mouse: what is typed next still goes into the prompt."""
        if self.selections and self._is_log_idle:
            self.query_one(Prompt).focus()

    def on_key(self, event: Key) -> None:
        """Text typed where no key does anything is meant for the prompt."""
        if event.is_printable and self._is_log_idle:
            event.stop()
            self._hand_over(event.copy())

    def on_paste(self, event: Paste) -> None:
        """Likewise for what is pasted."""
        if self._is_log_idle:
            event.stop()
            self._hand_over(Paste(event.text))

    @property
    def _is_log_idle(self) -> bool:
        """Whether the log has the focus and no message is selected, on which keys would act."""
        log = self.query_one(ChatLog)
        return log.has_focus and log.marked is None

    def _hand_over(self, event: Key | Paste) -> None:
        prompt = self.query_one(Prompt)
        self.set_focus(prompt)
        prompt.post_message(event)

    # Side panels

    @property
    def is_narrow(self) -> bool:
        """Whether list and gauge are overlays instead of columns."""
        return self.has_class("-narrow")

    @property
    def has_gauge_beside(self) -> bool:
        """Whether the gauge, if it is not folded, is a column and no overlay."""
        return not self.has_class("-gauge-over")

    def place_panels(self, list_width: int | None = None) -> None:
        """Let the gauge be a column if the conversation keeps ``MIN_CHAT_COLUMNS`` beside it."""
        listed, gauge = self.query_one(ConversationList), self.query_one("#gauge")
        if list_width is not None:
            listed.resize(list_width)
        taken = 0 if self.is_narrow or listed.has_class("folded") else _width(listed)
        fits = self.app.size.width - taken - _width(gauge) >= MIN_CHAT_COLUMNS
        self.set_class(not fits, "-gauge-over")
        self._figures_due = True

    def toggle(self, side: str) -> bool:
        """Show or hide a side panel; whether it is shown now."""
        part = self.query_one(side)
        beside = self.has_gauge_beside if side == "#gauge" else not self.is_narrow
        if beside:
            part.toggle_class("folded")
            shown = not part.has_class("folded")
        else:
            shown = not part.has_class("over")
            self.close_overlays()
            part.set_class(shown, "over")
        self.place_panels()
        if not shown:
            self.query_one(Prompt).focus()
        elif side == "#conversations":
            self.query_one("#titles").focus()
        elif not beside:
            part.focus()
        return shown

    def close_overlays(self) -> bool:
        """Close overlay panels; whether any was open."""
        over = list(self.query(".over"))
        for part in over:
            part.remove_class("over")
        if over:
            self._figures_due = True
            self.query_one(Prompt).focus()
        return bool(over)

    # View

    def conversations_changed(self) -> None:
        """Redraw list and title at the next tick: titles and sizes change often during a save."""
        self._list_due = self._figures_due = True

    def transcript_changed(self) -> None:
        """Show another conversation or branch."""
        chat, log = self._chat, self.query_one(ChatLog)
        reply = chat.turns.shown_reply
        unwritten = reply.message_id if reply else None
        shown = [message for message in chat.shown.messages if message.id != unwritten]
        log.show(shown, self._assistant, self.facts)
        if reply is not None:
            self.reply_started(reply)
            for piece in reply.pieces:
                log.grow(piece)
        self._show_log()
        self.query_one(NoticeLine).clear()
        self.query_one(Prompt).remember(
            [attachments.split(message.content)[0] for message in shown if message.role == "user"]
        )
        self._figures_due = self._list_due = True

    def message_added(self, message: Message) -> None:
        """Append the user's message."""
        self.query_one(NoticeLine).clear()
        self.query_one(ChatLog).add(message)
        self._show_log()

    def reply_started(self, reply: Reply) -> None:
        """Append an empty reply."""
        self.query_one(ChatLog).start_reply(self._assistant, "…")
        self._show_log()
        self._figures_due = True

    def reply_grew(self, piece: TextDelta) -> None:
        """Add a piece to the reply."""
        self.query_one(ChatLog).grow(piece)

    def reply_finished(self, message: Message | None) -> None:
        """End the reply."""
        self.query_one(ChatLog).finish_reply(message)

    def facts(self, message: Message) -> Facts:
        """Ending and version of a message."""
        chat = self._chat
        status = message.status if message.status != "complete" else None
        ending = chat.replies.endings.get(message.id) or status
        if chat.shown.read_only is None and chat.turns.can_continue(message):
            key = self._keys.label
            ending = f"{ending}: {key('continue')} continues, {key('regenerate')} regenerates"
        version, versions = chat.tree.version(message)
        return Facts(ending, version, versions)

    def prompt_returned(self, text: str) -> None:
        """Put an unanswered message back into the prompt."""
        self.query_one(Prompt).prepend(attachments.split(text)[0])

    def context_is_nearly_full(self) -> None:
        """Warn once before the context limit."""
        key = self._keys.label("make_room")
        self.say(f"The context is nearly full; {key} shows options.", "warning")

    def context_is_full(self) -> None:
        """Ask the user what to do."""
        self.post_message(self.ContextFull())

    def figures_changed(self) -> None:
        """Redraw the figures at the next tick."""
        self._figures_due = True

    def say(self, text: str, severity: Severity = "information") -> None:
        """Show a notice above the prompt."""
        self.query_one(NoticeLine).say(text, severity)

    def clear_notice(self) -> None:
        """Hide the notice."""
        self.query_one(NoticeLine).clear()

    # Drawing

    @property
    def _chat(self) -> Controller:
        assert self.chat is not None, "the app sets the chat before any view call"
        return self.chat

    @property
    def _assistant(self) -> str:
        return self._chat.models.label(self._chat.shown.adapter) or "assistant"

    @property
    def cache_sizes(self) -> dict[str, int]:
        """Cache bytes by conversation, in memory or on disk."""
        caches = self._chat.caches
        counted = {key: report.bytes for key, report in caches.reports.items() if report.tokens}
        return caches.disk_bytes | counted

    def _show_log(self) -> None:
        empty = not any(message.role != "system" for message in self._chat.shown.messages)
        self.query_one(Welcome).display = empty
        self.query_one(ChatLog).display = not empty

    def draw_due(self) -> None:
        """Draw what has changed since the last tick."""
        if self.chat is None:
            return
        if self._list_due:
            self._list_due = False
            self._draw_list(self.chat)
        if self._figures_due:
            self._figures_due = False
            self._draw_figures(self.chat)

    def _draw_figures(self, chat: Controller) -> None:
        on_disk = chat.caches.disk_bytes.get(chat.shown.conversation.id) if chat.shown.conversation else None
        reading = Reading(
            parse_scheme(chat.schemes.in_force),
            chat.caches.report,
            chat.caches.history,
            on_disk,
            chat.schemes.label,
            chat.models.memory_budget_in_force,
            chat.replies.decode_speed if chat.caches.is_live else None,
            chat.context.tokens_left(),
            0 if chat.caches.requests is None else chat.caches.requests.bytes,
            chat.caches.is_live and chat.work.activity == "reading",
        )
        gauge = self.query_one("#gauge")
        self.query_one(GaugeLine).display = not (gauge.display and self.has_gauge_beside)
        if gauge.display:
            self.query_one(GaugePanel).show(reading)
        self.query_one(GaugeLine).show(reading)
        self.query_one(TopBar).show(chat)
        self.query_one(StatusLine).show(chat)
        self.query_one(Welcome).show(chat, self._keys.label, self._first_run)
        self._draw_fork(chat.shown.fork)
        reply = self.query_one(ChatLog).reply
        now = doing(chat, self._keys.label)
        if reply is not None and now and chat.turns.shown_reply and chat.turns.shown_reply.is_empty:
            reply.wait_for(now)

    def _draw_fork(self, fork: Fork | None) -> None:
        """Fade messages that the next message replaces or branches off from, and say so at the prompt."""
        edited = fork.edited_id if fork else None
        since = None if fork is None else (edited, True) if edited else (fork.parent_id, False)
        self.query_one(ChatLog).fade(since)
        what = "" if fork is None else "Edits an earlier message" if edited else "Starts a branch here"
        if fork is not None and fork.role == "assistant":
            what = "Edits a reply, which is not answered"
        prompt = self.query_one(Prompt)
        prompt.border_title = what
        prompt.border_subtitle = "Esc cancels" if what else ""

    def _draw_list(self, chat: Controller) -> None:
        current = chat.shown.conversation.id if chat.shown.conversation else None
        conversations = chat.database.conversations()
        if self._first_run != (not conversations):
            self._first_run, self._figures_due = not conversations, True
        self.query_one(ConversationList).show(conversations, current, self.cache_sizes)


def _width(panel: Widget) -> int:
    """The width that a side panel is set to, shown or not."""
    width = panel.styles.width
    return int(width.value) if width is not None else 0
