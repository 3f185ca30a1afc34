"""What an empty page says."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from tqchat.kv.scheme import parse_scheme
from tqchat.text import one_line
from tqchat.ui import figures
from tqchat.ui.conversation import Chat
from tqchat.ui.keymap import key_label


class Welcome(Static):
    """Who answers, how it is stored, and three keys."""

    def __init__(self) -> None:
        super().__init__("", id="welcome", markup=False)

    def show(self, chat: Chat) -> None:
        """Draw for the model and the scheme as they stand."""
        if chat.model is not None:
            model = chat.model
            facts = [f"{model.layers} layers", figures.size(model.weight_bytes), model.device]
            who = Content.assemble((one_line(model.name), "bold"), ("  " + " · ".join(facts), "$quiet"))
        else:
            who = Content.styled(
                "The model is loading. You can write already." if chat.loading else "No model is loaded.",
                "$quiet",
            )
        scheme = parse_scheme(chat.scheme_in_force)
        keys = (("enter", "sends"), ("ctrl+k", "chooses the scheme"), ("f1", "shows all keys"))
        self.update(
            Content("\n").join(
                [
                    Content.styled("Ask something to begin.", "bold"),
                    Content(""),
                    who,
                    Content.assemble((chat.scheme_label, "$accent"), (f"  {scheme.description}", "$quiet")),
                    Content(""),
                    Content("   ").join(
                        [
                            Content.assemble((key_label(key), "$accent"), (f" {does}", "$quiet"))
                            for key, does in keys
                        ]
                    ),
                ]
            )
        )
