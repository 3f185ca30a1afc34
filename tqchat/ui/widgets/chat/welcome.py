"""The empty conversation's page: what tqchat is for (on the first run), model and scheme, what to do."""

from __future__ import annotations

from collections.abc import Callable

from textual.content import Content
from textual.widgets import Static

from tqchat.engine.commands import STARTER
from tqchat.kv.scheme import parse_scheme
from tqchat.text import one_line
from tqchat.ui import figures
from tqchat.ui.controller.controller import Controller
from tqchat.ui.widgets.gauge.drawing import bar

EXAMPLES = (
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "Why is it good to sleep?",
)
"""Prompts that suit the bundled model."""

EXAMPLES_MIN_HEIGHT = 24
"""Terminal height from which examples are shown."""


class Welcome(Static):
    """A few centred lines; everything that they offer has a key, and examples can be clicked too."""

    def __init__(self) -> None:
        super().__init__("", id="welcome", markup=False)

    def show(self, chat: Controller, key: Callable[[str], str], first_run: bool) -> None:
        """Draw the current model and scheme. ``key`` maps an action to its key's name."""
        scheme = parse_scheme(chat.schemes.in_force)
        lines = _purpose() if first_run else [Content.styled("Ask something to begin.", "bold")]
        lines += [
            Content(""),
            _who(chat, key),
            Content.assemble((chat.schemes.label, "$accent"), (f"  {scheme.description}", "$quiet")),
        ]
        is_starter = chat.models.current is not None and chat.models.current.ref == STARTER
        if is_starter and first_run and self.app.size.height >= EXAMPLES_MIN_HEIGHT:
            lines += _examples(key("example"))
        better = "picks a better model: this one is small" if is_starter else "picks another model"
        offers = (
            ("Enter", "asks what you have written"),
            (key("model"), better),
            (key("scheme"), "shows what the cache does"),
            (key("help"), "all keys"),
        )
        lines.append(Content(""))
        lines += [Content.assemble((one, "$accent"), (f" {does}", "$quiet")) for one, does in offers]
        self.update(Content("\n").join(lines))


def _purpose() -> list[Content]:
    return [
        Content.styled("Welcome. Ask something to begin.", "bold"),
        Content("Everything runs and stays on this machine."),
        Content("A chat's cache is compressed: more fits in memory,"),
        Content("and saved: a restart costs a long chat no time."),
    ]


def _who(chat: Controller, key: Callable[[str], str]) -> Content:
    model, loading = chat.models.current, chat.models.loading
    if model is not None:
        facts = [f"{model.layers} layers", figures.size(model.weight_bytes), one_line(model.device)]
        return Content.assemble(
            (one_line(chat.models.label(chat.shown.adapter)), "bold"), ("  " + " · ".join(facts), "$quiet")
        )
    if loading is None:
        return Content.assemble(
            ("No model is loaded. ", "$warning"), (f"{key('model')} chooses one.", "$quiet")
        )
    if loading.stage == "downloading" and loading.total_bytes:
        done = loading.done_bytes or 0
        return Content.assemble(
            (f"Downloading {one_line(loading.ref)} ", "$quiet"), bar(done / loading.total_bytes, 16),
            (f" {figures.size(done)} of {figures.size(loading.total_bytes)}", "$quiet"),
        )  # fmt: skip
    return Content.styled("The model is loading. You can already type.", "$quiet")


def _examples(key: str) -> list[Content]:
    parts = (("For a first try, ", "$quiet"), (key, "$accent"), (" writes one:", "$quiet"))
    lines = [Content(""), Content.assemble(*parts)]
    return lines + [
        Content.styled(example, f"@click=app.act('example','{index}')")
        for index, example in enumerate(EXAMPLES)
    ]
