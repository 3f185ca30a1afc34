"""The application: builds the parts, and connects Textual and the engine to them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from rich.color import ColorSystem
from textual import events as textual_events
from textual import on
from textual.app import App, SystemCommand
from textual.driver import Driver
from textual.drivers.linux_driver import LinuxDriver
from textual.filter import LineFilter
from textual.messages import ExitApp
from textual.screen import Screen

from tqchat.engine import events
from tqchat.engine.memory import quality_profile
from tqchat.kv.scheme import scheme_setting
from tqchat.paths import Paths
from tqchat.settings import Settings
from tqchat.store import unsaved
from tqchat.store.database import Database, purge_due
from tqchat.store.write_queue import WriteQueue
from tqchat.text import copyable
from tqchat.ui import themes
from tqchat.ui.actions import conversations, messages, models, palette, prompt, settings
from tqchat.ui.actions import screen as screen_actions
from tqchat.ui.actions.keys import ALT_PREFIX, Keys, bind, validate_keys, without_keys
from tqchat.ui.actions.registry import Registry
from tqchat.ui.actions.runner import ActionRunner
from tqchat.ui.actions.table import ACTIONS
from tqchat.ui.bridge import EngineEvent, EngineStopped, WriteProblem, Written
from tqchat.ui.controller.controller import Controller
from tqchat.ui.controller.engine.connection import EngineFactory, EngineLike, OnEvent
from tqchat.ui.gc_pauses import freeze_gc
from tqchat.ui.input.alt_prefix import AltPrefix
from tqchat.ui.input.order import InputOrder, KeysHandled
from tqchat.ui.input.terminal import TerminalDriver
from tqchat.ui.output_filter import LegibleColors, PrintableOnly
from tqchat.ui.parts import clipboard, lifecycle
from tqchat.ui.parts.appearance import Appearance
from tqchat.ui.parts.end_signals import EndSignals
from tqchat.ui.parts.engine import EngineLauncher
from tqchat.ui.parts.parts import Parts
from tqchat.ui.parts.preferences import Preferences
from tqchat.ui.screens.chat import ChatScreen
from tqchat.ui.widgets.chat.log import ChatLog
from tqchat.ui.widgets.conversations.list import ConversationList
from tqchat.ui.widgets.prompt.prompt import Prompt

PRINTABLE_ONLY = PrintableOnly()
FEWER_COLORS = {
    "standard": LegibleColors(ColorSystem.STANDARD),
    "256": LegibleColors(ColorSystem.EIGHT_BIT),
}
EXIT_TIMEOUT_S = 5.0
"""Longest wait for the screen to leave the terminal: one that is gone reads nothing any more."""


class TqchatApp(App[None]):
    """tqchat in a terminal.

    Args:
        configured: The settings of ``config.toml``; those changed in the app override them.
        model: Model to load instead of the one of the settings; likewise ``scheme`` and ``draft``.
        engine: Makes the engine once the screen has been painted; the real one if left out.
        actions: The registry of actions.
        problems: Sentences about settings and folders that cannot be used.

    Attributes:
        signals: The signals that end the app; whoever runs it in a process of its own installs them.

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

    def __init__(
        self,
        paths: Paths,
        configured: Settings,
        model: str | None = None,
        scheme: str | None = None,
        draft: str | None = None,
        adapter: str | None = None,
        engine: EngineFactory | None = None,
        actions: Registry = ACTIONS,
        problems: Sequence[str] = (),
    ) -> None:
        super().__init__()
        preferences = Preferences(paths, configured, problems)
        wanted = preferences.settings
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self.signals = EndSignals(self._on_signal, lambda: lifecycle.save_at_once(self.parts))
        restored = unsaved.restore(paths.database, paths.state_dir)
        self._writes = WriteQueue(
            paths.database,
            on_written=lambda: self.post_message(Written()),
            on_problem=lambda error: self.post_message(WriteProblem(error)),
        )
        self.database = Database(paths.database, self._writes)
        self._model = model or wanted.model
        self._draft = draft or wanted.draft
        self._adapter = adapter or wanted.adapter
        own_keys, key_problems = validate_keys(actions, wanted.keys)
        keys = Keys(actions, own_keys)
        screen = ChatScreen(keys)
        self.chat = screen.chat = Controller(
            self.database,
            screen,
            scheme=scheme_setting(scheme or wanted.scheme),
            profiles=lambda model: quality_profile.find(paths, model),
            sampling=wanted.sampling,
            system_prompt=wanted.system_prompt,
            thinking=wanted.reasoning,
        )
        self.chat.models.memory_budget = wanted.memory_budget_bytes
        self.parts = Parts(
            host=self,
            paths=paths,
            database=self.database,
            preferences=preferences,
            keys=keys,
            screen=screen,
            chat=self.chat,
            engine=EngineLauncher(engine or self._real_engine, self._from_engine),
            appearance=Appearance(self, preferences),
        )
        self._runner = ActionRunner(actions, self.parts)
        self._alt_prefix = AltPrefix(
            lambda: keys.of(ALT_PREFIX),
            lambda: self._runner.allowed(ALT_PREFIX),
            lambda waits: screen_actions.show_alt_keys(self.parts, waits),
        )
        self._input_order = InputOrder(self, self._deliver)
        preferences.on_change.append(lambda changed: settings.apply(self.parts, changed))
        preferences.problems += [
            *restored,
            *filter(None, [self.parts.presets.problem()]),
            *self.parts.appearance.load(wanted.theme),
            *key_problems,
            *without_keys(actions, own_keys),
        ]
        bind(self, keys.bindings("app"))
        self.set_keymap(own_keys)

    def get_default_screen(self) -> Screen[None]:
        """The chat."""
        return self.parts.screen

    def get_driver_class(self) -> type[Driver]:
        """Textual's choice, with our own reading of a terminal."""
        chosen = super().get_driver_class()
        return TerminalDriver if chosen is LinuxDriver else chosen

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Filters of every drawn line."""
        fewer = None if self.is_headless else FEWER_COLORS.get(self.console.color_system or "")
        return [*super().get_line_filters(), PRINTABLE_ONLY, *([fewer] if fewer else [])]

    def copy_to_clipboard(self, text: str) -> None:
        """Copy what is shown of a text: into the terminal's clipboard (OSC 52) and the desktop's.

        Every way of copying ends here: actions, mouse selection, the keys of input fields.
        """
        shown = copyable(text)
        super().copy_to_clipboard(shown)
        self.parts.in_thread(lambda: clipboard.write(shown))

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Colours for themes that do not set them."""
        return themes.variable_defaults(self.current_theme)

    # The engine

    def _real_engine(self, on_event: OnEvent) -> EngineLike:
        from tqchat.engine.worker import Engine

        return Engine(
            on_event,
            paths=self.parts.paths,
            cache_budget=self.parts.settings.cache_budget,
            limits=lambda: self.parts.settings.limits,
            draft=self._draft,
            adapter=self._adapter,
            find_profile=lambda model: quality_profile.find(self.parts.paths, model),
        )

    def _from_engine(self, event: events.Event) -> None:
        """Hand an event over to the screen's thread. Runs on the engine's thread and must not wait."""
        self.post_message(EngineEvent(event))

    def on_engine_event(self, message: EngineEvent) -> None:
        """An engine event has arrived on the screen's thread."""
        self.chat.handle(message.event)
        models.update_picker(self.parts, message.event)
        if isinstance(message.event, events.ModelReady) and not self.is_headless:
            freeze_gc()

    @on(Written)
    def _written(self) -> None:
        self.chat.written()

    @on(WriteProblem)
    def _write_failed(self, message: WriteProblem) -> None:
        lifecycle.report_writes(self.parts, message.error)

    def on_unmount(self) -> None:
        """Write what is still in the queue, however the app ends."""
        lifecycle.close(self.parts)
        self.signals.end_within(EXIT_TIMEOUT_S, self.return_code or 0)

    @on(EngineStopped)
    def _engine_gone(self, message: EngineStopped) -> None:
        lifecycle.leave(self.parts, message.write_timeout_s, message.code)

    def on_load(self) -> None:
        """Keep the event loop for signals. Runs before the first paint."""
        self._event_loop = asyncio.get_running_loop()
        # Textual draws only what changes when it is brought back from the background.
        self.app_resume_signal.subscribe(self, lambda _: self.screen.refresh(layout=True))

    def _on_signal(self) -> None:
        if self._event_loop is None:
            raise SystemExit(self.signals.exit_code)
        self._event_loop.call_soon_threadsafe(lambda: lifecycle.end_soon(self.parts, self.signals.exit_code))

    def on_exit_app(self, event: ExitApp) -> None:
        """Save before the end that a browser's closed tab asks for."""
        if not self._exit:
            event.prevent_default()
            lifecycle.end_soon(self.parts, None)

    # Keys and actions

    async def on_event(self, event: textual_events.Event) -> None:
        """Handle keys and pastes in their order."""
        if isinstance(event, (textual_events.Key, textual_events.Paste)) and not event.is_forwarded:
            await self._input_order.take(event)
        else:
            await super().on_event(event)

    async def _deliver(self, event: textual_events.Key | textual_events.Paste) -> None:
        """Read a prefix key before keys are bound to anything."""
        meant = self._alt_prefix.read(event) if isinstance(event, textual_events.Key) else event
        if meant is not None:
            await super().on_event(meant)

    @on(KeysHandled)
    async def _keys_handled(self) -> None:
        await self._input_order.release()

    def action_act(self, name: str, argument: str = "") -> None:
        """Run an action of the registry: key bindings and clicks call this.

        It runs behind the keys that the focused widget has not handled yet, and before later ones.
        """
        (self.focused or self).call_later(self._act, name, argument)

    def _act(self, name: str, argument: str) -> None:
        if self._runner.allowed(name):  # a key before this one may have opened a dialog
            self._runner.run(name, argument)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether an action applies now."""
        if action == "act":
            return self._runner.allowed(str(parameters[0]))
        return super().check_action(action, parameters)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The palette: tqchat's actions, and none of Textual's own."""
        return palette.commands(self._runner, self.parts.keys)

    async def action_quit(self) -> None:
        """Replace Textual's own way of quitting."""
        lifecycle.quit(self.parts)

    # Messages of widgets

    @on(ChatScreen.Ready)
    def _begin(self) -> None:
        if self.signals.installed:
            self.signals.install()  # again: the driver for browsers has set its own handlers
        has_few_colours = self.console.color_system == "standard" and not self.is_headless
        self.set_class(has_few_colours, "-few-colours")
        self._writes.start(purge_due)
        self.parts.prompt.submit = partial(prompt.submit, self._runner)
        self.parts.prompt.suggest = self.parts.completion.update
        self.parts.prompt.choose = self.parts.completion.choose
        settings.apply_to_screen(self.parts, self.parts.settings)
        lifecycle.show_initial(self.parts, self._model)
        self.theme_changed_signal.subscribe(self, self.parts.appearance.remember)
        self.set_interval(lifecycle.POLL_INTERVAL_S, self.poll)
        self.parts.screen.call_after_refresh(lifecycle.start_engine, self.parts, self._model)
        self.call_later(self._input_order.release)  # keys that were pressed meanwhile
        self.screen_change_signal.subscribe(self, lambda screen: self.call_later(self._input_order.release))

    def poll(self) -> None:
        """Look for changes by other processes, and for a terminal or browser that is gone."""
        keys = getattr(self._driver, "_key_thread", None)
        is_gone = (keys is not None and not keys.is_alive()) or self.signals.terminal_is_gone()
        if is_gone and not self.parts.engine.stopping:
            lifecycle.end_soon(self.parts, 128 + signal.SIGHUP)
        else:
            lifecycle.poll(self.parts)

    @on(Prompt.Changed, "#prompt")
    def _prompt_changed(self) -> None:
        self.parts.completion.update()
        self.parts.attachments.update()

    @on(ConversationList.Chosen)
    def _open(self, event: ConversationList.Chosen) -> None:
        conversations.open_found(self.parts, event)

    @on(ConversationList.Resized)
    def _list_resized(self, event: ConversationList.Resized) -> None:
        screen_actions.resize_list(self.parts, event.width)

    @on(ChatLog.Marked)
    def _marked(self, event: ChatLog.Marked) -> None:
        messages.cursor_moved(self.parts, event.message)

    @on(ChatScreen.ContextFull)
    def _context_full(self) -> None:
        self._runner.run("make_room")
