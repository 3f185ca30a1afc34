"""What commands written into the prompt do; and the dialog for what one conversation decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from textual import on, work
from textual.widgets import TextArea

from tqchat.engine.commands import STARTER
from tqchat.errors import TqchatError
from tqchat.kv.scheme import AUTO, SCHEMES, scheme_setting
from tqchat.store.database import SamplingChoice
from tqchat.store.sampling import parse
from tqchat.text import one_line
from tqchat.ui import slash
from tqchat.ui.completion import is_whole, offers
from tqchat.ui.presets import Preset, Presets
from tqchat.ui.room_actions import RoomActions
from tqchat.ui.screens.chat_settings import NAMES, ChatSettings, Decision
from tqchat.ui.widgets.prompt.prompt import Prompt
from tqchat.ui.widgets.prompt.suggestions import Suggestions


class SlashActions(RoomActions):
    """Slash commands: every one is also an action with a key or in the palette."""

    @property
    def presets(self) -> Presets:
        """Named ways to draw replies."""
        return Presets(self.paths.presets)

    def run_slash(self, name: str, argument: str) -> bool:
        """Do what a command says; ``False`` leaves it in the prompt to be put right."""
        if name not in slash.NAMES:
            self.say(f"There is no command /{name}; // at the beginning sends it as text.", "warning")
            return False
        deed: Callable[[str], bool | None] = getattr(self, f"_slash_{name}")
        try:
            return deed(argument) is not False
        except (TqchatError, OSError, ValueError) as error:
            self.say(str(error) or "That cannot be done.", "error")
            return False

    def _slash_scheme(self, argument: str) -> None:
        if not argument:
            self.call_later(self.run_action, "scheme")
            return
        if argument == "undo":
            self.action_undo_scheme()
        else:
            self.chat.schemes.set(scheme_setting(argument))

    def _slash_model(self, argument: str) -> None:
        if argument:
            self.load(argument)
        else:
            self.call_later(self.run_action, "model")

    def _slash_new(self, argument: str) -> None:
        self.call_later(self.action_new)

    def _slash_room(self, argument: str) -> None:
        self.call_later(self.run_action, "make_room")

    def _slash_rename(self, argument: str) -> None:
        if argument and self.chat.shown.conversation is not None:
            self.chat.shown.rename(one_line(argument))
        else:
            self.call_later(self.run_action, "rename")

    def _slash_search(self, argument: str) -> None:
        self.call_later(self.search_for, argument)

    def _slash_system(self, argument: str) -> None:
        if argument:
            self.chat.shown.set_system_prompt(argument)
            self.say("The model is told so from the next message on.")
        else:
            self.call_later(self.run_action, "settings")

    def _slash_set(self, argument: str) -> bool:
        wanted = slash.assignments(argument)
        if not wanted:
            self.call_later(self.run_action, "settings")
            return True
        try:
            values = {name: slash.number(value) for name, value in wanted.items()}
        except ValueError:
            self.say("Write it as name=number, such as temperature=0.7.", "warning")
            return False
        parse(dict(values))
        choice = replace(self.chat.sampling.choice, **values)  # type: ignore[arg-type]
        self.chat.sampling.set(choice)
        said = ", ".join(f"{name} {value:g}" for name, value in choice.given.items())
        self.say(f"Decided here: {said}." if said else "All is left to the settings.")
        return True

    def _slash_preset(self, argument: str) -> bool:
        deed, _, name = argument.partition(" ")
        match deed:
            case "":
                self.call_later(self.run_action, "settings")
            case "save":
                self.presets.save(name, Preset(self.chat.sampling.choice, self.chat.shown.system_prompt))
                self.say(f"Kept as {name}: /preset {name} takes it over in any conversation.")
            case "delete":
                self.presets.delete(name)
                self.say(f"Forgot the preset {name}.")
            case _:
                preset = self.presets.get(argument)
                if preset.system_prompt is not None:
                    self.chat.shown.set_system_prompt(preset.system_prompt)
                self.chat.sampling.set(preset.sampling)
                self.say(f"{argument}: {preset.summary}.")
        return True

    def _slash_copy(self, argument: str) -> bool:
        deeds = {
            "": self.action_copy_reply,
            "code": self.action_copy_last_code,
            "chat": self.action_copy_chat,
        }
        if argument not in deeds:
            self.say("Copy what: nothing for the reply, code, or chat.", "warning")
            return False
        deeds[argument]()
        return True

    def _slash_export(self, argument: str) -> bool:
        from tqchat.store.exchange import to_markdown

        if self.chat.shown.conversation is None:
            self.say("There is nothing to export yet.")
            return False
        title = re.sub(r"[^\w-]+", "-", one_line(self.chat.shown.conversation.title)).strip("-").lower()
        file = Path(argument or f"{title or 'conversation'}.md").expanduser().absolute()
        if file.exists():
            self.say(f"{file} is there already; name another file.", "warning")
            return False
        file.write_text(to_markdown(self.database, self.chat.shown.conversation), encoding="utf-8")
        self.say(f"Written to {file}.")
        return True

    def _slash_theme(self, argument: str) -> bool:
        if not argument:
            self.call_later(self.run_action, "theme")
        elif argument in self.available_themes:
            self.theme = argument
        else:
            self.say(f"There is no theme {one_line(argument)!r}; /theme alone lists them.", "warning")
            return False
        return True

    def _slash_settings(self, argument: str) -> None:
        self.call_later(self.run_action, "preferences")

    def _slash_help(self, argument: str) -> None:
        self.call_later(self.run_action, "help")

    # Completion

    @on(TextArea.Changed, "#prompt")
    def _suggest(self, event: TextArea.Changed) -> None:
        values: dict[str, Callable[[], Sequence[str]]] = {
            "scheme": lambda: [AUTO, *(scheme.name for scheme in SCHEMES), "undo"],
            "theme": lambda: sorted(self.available_themes),
            "set": lambda: [f"{field.name}=" for field in fields(SamplingChoice)],
            "copy": lambda: ["code", "chat"],
            "preset": lambda: [*self.presets.all(), "save", "delete"],
            "model": lambda: [STARTER],
        }
        prompt = self.prompt
        line, row = prompt.before_cursor, prompt.cursor_location[0]
        found = offers(line, values, first_line=row == 0 and prompt.document.line_count == 1)
        prompt.offering = bool(found)
        prompt.enter_completes = bool(found) and not is_whole(line, values)
        self._chat_screen.query_one(Suggestions).show(found)

    @on(Prompt.Completing)
    def _complete(self, event: Prompt.Completing) -> None:
        shown = self._chat_screen.query_one(Suggestions)
        chosen = shown.chosen
        if chosen is None:
            self._chat_screen.focus_next()
        elif event.step:
            shown.move(event.step)
            self.prompt.enter_completes = True
        else:
            self.prompt.complete(chosen.start, chosen.insert)

    def close_suggestions(self) -> bool:
        """Offer nothing until more is written; whether anything was offered."""
        shown = self._chat_screen.query_one(Suggestions)
        had = shown.chosen is not None
        shown.show([])
        self.prompt.offering = self.prompt.enter_completes = False
        return had

    # The dialog

    @work
    async def action_settings(self) -> None:
        """What this conversation decides for itself."""
        dialog = ChatSettings(
            self.chat.shown.system_prompt,
            self.chat.sampling.choice,
            self.presets,
            {name: self.chat.sampling.inherited(name) for name in NAMES},
        )
        decision: Decision | None = await self.push_screen_wait(dialog)
        if decision is None:
            return
        if decision.system_prompt != self.chat.shown.system_prompt:
            self._try(self.chat.shown.set_system_prompt, decision.system_prompt)
        self._try(self.chat.sampling.set, decision.sampling)
