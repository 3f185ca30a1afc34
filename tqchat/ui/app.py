"""The application: chat, screen and engine put together, and every action that a key or the palette runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from textual import on, work
from textual.app import SystemCommand
from textual.binding import BindingType
from textual.screen import ModalScreen, Screen

from tqchat.engine import events
from tqchat.engine.memory import quality_profile
from tqchat.errors import TqchatError
from tqchat.kv.scheme import scheme_setting
from tqchat.paths import Paths
from tqchat.settings import Settings, State
from tqchat.store.database import Database
from tqchat.store.vault import Vault
from tqchat.ui import keymap, palette
from tqchat.ui.bridge import EngineEvent, EngineGone
from tqchat.ui.controller.controller import Controller
from tqchat.ui.controller.engine import EngineFactory, EngineLike, OnEvent
from tqchat.ui.keymap import ACTIONS, keys_in_force
from tqchat.ui.pauses import spare_what_stays
from tqchat.ui.screens.chat import ChatScreen
from tqchat.ui.screens.dialog import Leaving
from tqchat.ui.screens.help import Help
from tqchat.ui.slash_actions import SlashActions
from tqchat.ui.widgets.chat.log import ChatLog
from tqchat.ui.widgets.conversations.list import ConversationList
from tqchat.ui.widgets.prompt.prompt import Prompt

SAVING_SECONDS = 60.0
"""How long leaving waits for the cache to be saved; ctrl+q again does not wait."""
BEAT_SECONDS = 1.5
"""How often other processes' writing is looked for, and a draft is kept."""
_NAMES = frozenset(action.name for action in ACTIONS)


class TqchatApp(SlashActions):
    """tqchat in a terminal.

    ``settings`` are those of ``config.toml``; what was changed in the app goes before them. ``engine`` makes
    the engine once the screen has been painted; left out, it is the real one.

    Raises:
        TqchatError: if the conversations cannot be opened; nothing has been drawn by then.
    """

    TITLE = "tqchat"
    CSS_PATH = "tqchat.tcss"
    HORIZONTAL_BREAKPOINTS: list[tuple[int, str]] | None = [
        (0, "-narrow"),
        (88, "-medium"),
        (112, "-wide"),
    ]
    VERTICAL_BREAKPOINTS: list[tuple[int, str]] | None = [(0, "-low"), (22, "-mid"), (32, "-high")]
    BINDINGS: ClassVar[list[BindingType]] = [action.binding for action in ACTIONS]

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        model: str | None = None,
        scheme: str | None = None,
        draft: str | None = None,
        engine: EngineFactory | None = None,
    ) -> None:
        super().__init__()
        self.paths = paths
        self.state = State.load(paths)
        self.configured = settings
        self.settings = settings = settings.with_values(self.state.settings)
        self.database = Database(paths.database)
        self._model = model or settings.model
        self._draft = draft or settings.draft
        self._make_engine = engine or self._real_engine
        self._leaving = False
        self._chat_screen = ChatScreen()
        self.chat = Controller(
            self.database,
            self._chat_screen,
            scheme=scheme_setting(scheme or settings.scheme),
            profiles=lambda model: quality_profile.find(paths, model),
            sampling=settings.sampling,
            system_prompt=settings.system_prompt,
            thinking=settings.reasoning,
        )
        self._chat_screen.chat = self.chat
        self.chat.models.memory_budget = settings.memory_budget_bytes
        keys, problems = keymap.checked(settings.keys)
        self.problems = [*self._use_themes(settings.theme), *problems, *keymap.lost(keys)]
        self.set_keymap(keys)

    def get_default_screen(self) -> Screen[None]:
        """The chat."""
        return self._chat_screen

    @on(ChatScreen.Ready)
    def _begin(self) -> None:
        """Show the last conversation; the engine's thread starts once that is painted."""
        screen = self._chat_screen
        screen.query_one("#conversations").set_class(not self.state.sidebar, "folded")
        screen.query_one("#gauge").set_class(not self.state.gauge, "folded")
        self.theme_changed_signal.subscribe(self, self._remember_theme)
        self._reopen()
        if self.problems:
            more = len(self.problems) - 1
            tail = f" {more} more in the settings, {self.key('preferences')}." if more else ""
            screen.say(f"{self.problems[0]}{tail}", "warning")
        screen.query_one(ConversationList).find = lambda text: self._try(self.database.search, text) or []
        self.set_interval(BEAT_SECONDS, self._beat)
        screen.draw_due()
        screen.call_after_refresh(self._start_engine)

    def _reopen(self) -> None:
        if self.state.conversation is not None:
            try:
                self.chat.shown.open(self.state.conversation)
                self.prompt.put(self.chat.shown.unsent_text)
                return
            except TqchatError:
                pass  # It was deleted, by another process or on the command line: an empty page says enough.
        self.chat.shown.new()

    # The engine

    def _real_engine(self, on_event: OnEvent) -> EngineLike:
        from tqchat.engine.worker import Engine

        return Engine(
            on_event,
            paths=self.paths,
            cache_budget=self.settings.cache_budget,
            limits=lambda: self.settings.limits,
            draft=self._draft,
        )

    def _start_engine(self) -> None:
        vault = Vault(self.paths.caches)
        self.chat.caches.disk_bytes.update(
            (one.id, size) for one in self.database.conversations() if (size := vault.size(one.id))
        )
        self._chat_screen.conversations_changed()
        try:
            self._engine = self._make_engine(self._from_engine)
            self._engine.start()
        except TqchatError as error:
            self._chat_screen.say(str(error), "error")
        else:
            self.chat.connect(self._engine, self._model)

    def _from_engine(self, event: events.Event) -> None:
        """Runs on the engine's thread: hands the event over, and never waits for the screen."""
        self.post_message(EngineEvent(event))

    def on_engine_event(self, message: EngineEvent) -> None:
        """On the screen's thread again."""
        self.chat.handle(message.event)
        self.tell_picker(message.event)
        if isinstance(message.event, events.ModelReady) and not self.is_headless:
            spare_what_stays()

    # What the person does

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A question in front of the chat has the keys to itself; leaving is always possible."""
        if action in _NAMES and action != "quit" and isinstance(self.screen, ModalScreen):
            return False
        return super().check_action(action, parameters)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The palette has everything, and nothing of Textual's own."""
        return palette.commands(self, keymap.keys_bound(self.rebound))

    def _beat(self) -> None:
        """What is looked after now and then: other processes, and what is half written."""
        if not self._leaving and self._chat_screen.query(Prompt):
            self._try(self.chat.shown.refresh)
            self._reread_themes()
            self._keep_draft()

    def action_stop(self) -> None:
        """Close what lies over the chat, else stop what goes on, else back to the prompt."""
        screen = self._chat_screen
        if screen.close_overlays() or self.close_suggestions():
            return
        if self.log_view.marked is not None:
            self.log_view.mark(None)
        elif not self._try(self.chat.turns.stop) and not self._leave_fork():
            screen.clear_notice()
            screen.query_one(Prompt).focus()

    def action_page_up(self) -> None:
        """Scroll the conversation back, wherever the cursor is."""
        self._chat_screen.query_one(ChatLog).scroll_page_up(animate=False)

    def action_page_down(self) -> None:
        """Scroll it on."""
        self._chat_screen.query_one(ChatLog).scroll_page_down(animate=False)

    def action_help(self) -> None:
        """All keys."""
        self.push_screen(Help(keys_in_force(self._chat_screen)))

    # Leaving

    async def action_quit(self) -> None:
        """Save the cache, then leave; the second time, leave."""
        if self._leaving or self._engine is None:
            self._leave()
            return
        self._keep_draft()
        self._leaving = True
        self.push_screen(Leaving())
        self._save_and_leave(self._engine)

    @work(thread=True)
    def _save_and_leave(self, engine: EngineLike) -> None:
        engine.stop()
        engine.shutdown(SAVING_SECONDS)
        # Behind the events that the engine has posted by now, so that a stopped reply is written first.
        self.post_message(EngineGone())

    @on(EngineGone)
    def _leave(self) -> None:
        self._try(self.chat.close)
        self._remember()
        self.database.close()
        self.exit()
