"""Settings screen, generated from the settings schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tqchat.engine.commands import drafting_of
from tqchat.engine.hub.resolve import local_folder
from tqchat.errors import TqchatError
from tqchat.kv.scheme import AUTO, SCHEMES
from tqchat.paths import expand_user
from tqchat.settings import SETTINGS, SETTINGS_BY_NAME, Setting, Settings
from tqchat.settings.schema import GROUPS
from tqchat.text import one_line
from tqchat.ui import figures
from tqchat.ui.parts.preferences import Preferences
from tqchat.ui.screens.dialog import Choose
from tqchat.ui.widgets.fields import LineField

NAME_WIDTH = 18
WIDE = 96
"""Terminal width in cells from which the origin of values is shown."""


class SettingsScreen(ModalScreen[None]):
    """Settings by group, with value, origin and allowed values."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("backspace,delete", "reset", "As in config.toml"),
    ]

    def __init__(self, preferences: Preferences, choose_theme: Callable[[], None]) -> None:
        super().__init__(classes="dialog preferences")
        self._preferences, self._choose_theme = preferences, choose_theme

    def compose(self) -> ComposeResult:
        """Problems, settings, details of the marked one, input, keys."""
        with Vertical(classes="box") as box:
            box.border_title = "Settings"
            with VerticalScroll(classes="problems"):
                yield from (
                    Static(f"! {one_line(said)}", markup=False) for said in self._preferences.problems
                )
            yield OptionList(*self._options(), compact=True, markup=False)
            yield Static("", classes="explanation", markup=False)
            yield LineField(compact=True, id="value")
            yield Static("", classes="problem", markup=False)
            yield Static("", classes="answers", markup=False)

    def on_mount(self) -> None:
        """Start at the first setting with the input hidden."""
        self.query_one(".problems").display = bool(self._preferences.problems)
        self._edit(False)
        self.query_one(OptionList).highlighted = 1

    def on_resize(self) -> None:
        """Fit the lines to the width."""
        self._redraw()

    def on_screen_resume(self) -> None:
        """Redraw: a picker may have changed a setting."""
        self._redraw()

    # Drawing

    def _options(self) -> list[Option]:
        options = []
        for group in GROUPS:
            options.append(Option(Content.styled(group, "bold $quiet"), disabled=True))
            options += [
                Option(self._line(setting), id=setting.name) for setting in SETTINGS if setting.group == group
            ]
        return options

    def _line(self, setting: Setting) -> Content:
        value = self._value(setting)
        origin = self._origin(setting)
        style = {"here": "$accent", "config.toml": "", "": "$quiet"}[origin]
        wide = self.app.size.width >= WIDE
        parts = [
            (f"  {setting.title:<{NAME_WIDTH}} ", ""),
            (figures.fit(value or setting.default_text, 40 if wide else 28), style),
        ]
        if wide:
            parts.append((f"  {'set here' if origin == 'here' else origin}", "$quiet"))
        return Content.assemble(*parts)

    def _value(self, setting: Setting) -> str:
        if setting.kind == "keys":
            count = len(self._preferences.settings.keys)
            return f"{count} rebound" if count else ""
        return one_line(setting.format(getattr(self._preferences.settings, setting.name)))

    def _origin(self, setting: Setting) -> str:
        if setting.name in self._preferences.own:
            return "here"
        default = getattr(Settings(), setting.name)
        return "config.toml" if getattr(self._preferences.configured, setting.name) != default else ""

    def _redraw(self) -> None:
        options = self.query_one(OptionList)
        for setting in SETTINGS:
            options.replace_option_prompt(setting.name, self._line(setting))
        self._explain()

    def _explain(self) -> None:
        setting = self._marked
        if setting is None:
            return
        origin = self._origin(setting)
        if origin == "here":
            configured = setting.format(getattr(self._preferences.configured, setting.name))
            where = (
                f"Set here, in state.toml; in config.toml: {one_line(configured) or setting.default_text}."
            )
        elif origin:
            where = f"From {one_line(str(self._preferences.paths.config_file))}."
        else:
            where = f"Not set: {setting.default_text}."
        self.query_one(".explanation", Static).update(
            Content("\n").join(
                [
                    Content(setting.help),
                    Content.styled(f"{_sentence(setting.allowed)} Applies {setting.applies}.", "$quiet"),
                    Content.styled(where, "$quiet"),
                ]
            )
        )
        keys = [("Enter", "changes"), ("Esc", "closes")]
        if origin == "here":
            keys.insert(1, ("Backspace", "as in config.toml"))
        if self.query_one("#value", LineField).display:
            keys = [("Enter", "accepts"), ("Esc", "cancels")]
        self.query_one(".answers", Static).update(
            Content("   ").join([Content.assemble((key, "$accent"), f" {does}") for key, does in keys])
        )

    @property
    def _marked(self) -> Setting | None:
        option = self.query_one(OptionList).highlighted_option
        return SETTINGS_BY_NAME[option.id] if option is not None and option.id else None

    @on(OptionList.OptionHighlighted)
    def _moved(self) -> None:
        self._show_problem("")
        self._explain()

    # Changing

    @on(OptionList.OptionSelected)
    def _change(self) -> None:
        setting = self._marked
        if setting is None:
            return
        if setting.kind == "theme":
            self._choose_theme()
        elif setting.kind == "scheme":
            self._choose_scheme(setting)
        elif setting.kind == "keys":
            self._show_problem(f"Keys are set in {one_line(str(self._preferences.paths.config_file))}.")
        else:
            box = self.query_one("#value", LineField)
            box.value = one_line(setting.format(getattr(self._preferences.settings, setting.name)))
            box.placeholder = setting.default_text
            self._edit(True)

    @work
    async def _choose_scheme(self, setting: Setting) -> None:
        options = [(AUTO, "Chooses a scheme for the model, and says why.")]
        options += [(scheme.name, scheme.description) for scheme in SCHEMES]
        choose = Choose("Scheme of new conversations", options, self._preferences.settings.scheme)
        if (chosen := await self.app.push_screen_wait(choose)) is not None:
            self._preferences.set(setting.name, chosen)
            self._redraw()

    def _edit(self, writing: bool) -> None:
        box = self.query_one("#value", LineField)
        box.display = writing
        (box if writing else self.query_one(OptionList)).focus()
        self._show_problem("")
        self._explain()

    @on(LineField.Submitted, "#value")
    def _take(self, event: LineField.Submitted) -> None:
        setting = self._marked
        assert setting is not None
        if event.value == one_line(setting.format(getattr(self._preferences.settings, setting.name))):
            self._edit(False)  # an unchanged text keeps its line breaks
            return
        if not event.value.strip() and setting.kind != "text":
            self._preferences.set(setting.name, None)
        else:
            try:
                value = setting.parse(event.value)
                _check_files(setting, value)
            except ValueError as error:
                self._show_problem(f"It must be {error}.")
                return
            except TqchatError as error:
                self._show_problem(one_line(str(error)))
                return
            self._preferences.set(setting.name, value)
        self._edit(False)
        self._redraw()

    def _show_problem(self, what: str) -> None:
        problem = self.query_one(".problem", Static)
        problem.display = bool(what)
        problem.update(Content.styled(f"! {what}", "$warning") if what else "")

    def action_reset(self) -> None:
        """Return the setting to config.toml."""
        if (setting := self._marked) is not None:
            self._preferences.set(setting.name, None)
            self._redraw()

    def action_back(self) -> None:
        """Close the input if it is open, else the screen."""
        if self.query_one("#value", LineField).display:
            self._edit(False)
        else:
            self.dismiss(None)


def _sentence(allowed: str) -> str:
    return f"{allowed[0].upper()}{allowed[1:]}."


def _check_files(setting: Setting, value: Any) -> None:
    """Check that the models and folders that a setting names exist.

    Raises:
        TqchatError: if one does not.
    """
    if setting.kind == "model":
        ref = drafting_of(value).model if setting.name == "draft" else value
        local_folder(ref)
    elif setting.kind in ("folder", "folders"):
        for folder in [value] if setting.kind == "folder" else value:
            if not expand_user(folder).is_dir():
                raise TqchatError(f"There is no folder {folder!r}.")
