"""Settings of one conversation: system prompt and sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Label, Static

from tqchat.errors import TqchatError
from tqchat.store.database import SamplingChoice
from tqchat.store.sampling import parse
from tqchat.ui.input.slash import number
from tqchat.ui.parts.presets import Preset, Presets
from tqchat.ui.screens.dialog import Ask, Choose
from tqchat.ui.widgets.fields import LineField, TextField

NAMES = tuple(field.name for field in fields(SamplingChoice))


@dataclass(frozen=True)
class Decision:
    """The settings entered."""

    system_prompt: str | None
    sampling: SamplingChoice


class ChatSettings(ModalScreen[Decision | None]):
    """The system prompt and the sampling parameters; empty fields show the ``inherited`` value."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Back"),
        Binding("ctrl+s", "save", "Save", priority=True),
        Binding("f2", "take_preset", "Preset", priority=True),
        Binding("f3", "keep_preset", "Save as preset", priority=True),
    ]

    def __init__(
        self,
        system_prompt: str | None,
        sampling: SamplingChoice,
        presets: Presets,
        inherited: Mapping[str, str],
    ) -> None:
        super().__init__(classes="dialog settings")
        self._system_prompt, self._sampling, self._presets = system_prompt, sampling, presets
        self._inherited = inherited

    def compose(self) -> ComposeResult:
        """System prompt, sampling fields, keys."""
        with Vertical(classes="box") as box:
            box.border_title = "This conversation"
            yield Static(Content.styled("System prompt", "$quiet"))
            yield TextField(self._system_prompt or "", compact=True, highlight_cursor_line=False)
            yield Static(Content.styled("Sampling; empty fields use the settings", "$quiet"))
            with VerticalScroll(classes="numbers", can_focus=False):
                for name in NAMES:
                    value = self._sampling.given.get(name)
                    with Horizontal(classes="row"):
                        yield Label(name.replace("_", " "), markup=False)
                        yield LineField(
                            "" if value is None else f"{value:g}",
                            placeholder=self._inherited[name],
                            id=f"set-{name}",
                            compact=True,
                        )
            yield Static("", classes="problem", markup=False)
            yield Static(
                Content.assemble(
                    ("^S", "$accent"),
                    " saves   ",
                    ("F2", "$accent"),
                    " presets   ",
                    ("F3", "$accent"),
                    " saves as preset   ",
                    ("Esc", "$accent"),
                    " goes back",
                ),
                classes="answers",
            )

    def action_save(self) -> None:
        """Close with the settings entered, if they are valid."""
        entered = self._entered()
        if entered is not None:
            self.dismiss(entered)

    @work
    async def action_take_preset(self) -> None:
        """Fill the fields from a preset, without saving."""
        found = self._presets.all()
        options = [(name, preset.summary) for name, preset in found.items()]
        chosen = await self.app.push_screen_wait(Choose("Use a preset", options, ""))
        if chosen is None:
            return
        preset = found[chosen]
        for name in NAMES:
            value = preset.sampling.given.get(name)
            self.query_one(f"#set-{name}", LineField).value = "" if value is None else f"{value:g}"
        if preset.system_prompt is not None:
            self.query_one(TextField).text = preset.system_prompt

    @work
    async def action_keep_preset(self) -> None:
        """Save the settings entered as a preset."""
        entered = self._entered()
        if entered is None:
            return
        name = await self.app.push_screen_wait(Ask("Save as a preset called"))
        if name is None:
            return
        try:
            self._presets.save(name, Preset(entered.sampling, entered.system_prompt))
        except TqchatError as error:
            self._refuse(str(error))
        else:
            self.query_one(".problem", Static).update(Content.styled(f"Saved as {name}.", "$quiet"))

    def _entered(self) -> Decision | None:
        """The settings entered; ``None`` after showing what is invalid."""
        values: dict[str, object] = {}
        try:
            for name in NAMES:
                written = self.query_one(f"#set-{name}", LineField).value.strip()
                values[name] = number(written)
            sampling = parse(values)
        except ValueError:
            self._refuse(f"{name.replace('_', ' ')} must be a number.")
        except TqchatError as error:
            self._refuse(str(error))
        else:
            return Decision(self.query_one(TextField).text.strip() or None, sampling)
        return None

    def _refuse(self, why: str) -> None:
        self.query_one(".problem", Static).update(Content.styled(why, "$error"))

    def action_cancel(self) -> None:
        """Close without changes."""
        self.dismiss(None)
