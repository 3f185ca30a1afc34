"""The files that the next message will carry, above the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import Static

from tqchat.ui.input.attachments import Preview


class AttachedFiles(Static):
    """One line per file, as far as there is room; a click sends their names as words."""

    MAX_ROWS = 4

    def __init__(self) -> None:
        super().__init__("", id="attached", markup=False)
        self.display = False
        self.files: Sequence[Preview] = ()

    def show(self, files: Sequence[Preview]) -> None:
        """Show these files; none hides the widget."""
        if files == self.files:
            return
        self.files = files
        self.display = bool(files)
        shown = files if len(files) <= self.MAX_ROWS else files[: self.MAX_ROWS - 1]
        rows = [
            Content.assemble(("▸ ", "$accent"), (file.label, "")) if file.attached
            else Content.styled(f"· {file.label}", "$quiet")
            for file in shown
        ]  # fmt: skip
        if len(shown) < len(files):
            rows.append(Content.styled(f"  and {len(files) - len(shown)} more", "$quiet"))
        self.update(Content("\n").join(rows))

    async def on_click(self) -> None:
        """Attach nothing, or attach again."""
        await self.run_action("app.act('attach')")
