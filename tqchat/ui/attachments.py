"""Files in a message: as text behind the person's words, and back."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tqchat.text import one_line
from tqchat.ui import figures

_BLOCK = re.compile(
    r"(?:\A|\n\n)Attached file (\S[^\n]*):\n(`{3,})[^\n`]*\n(.*?)\n?\2(?=\n\nAttached file |\s*\Z)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Attachment:
    """A file as it was when it was attached."""

    name: str
    text: str

    @property
    def label(self) -> str:
        """``notes.md · 120 lines · 4.2 kB``."""
        count = self.text.count("\n") + 1
        lines = "1 line" if count == 1 else f"{figures.number(count)} lines"
        return f"{one_line(self.name)} · {lines} · {figures.size(len(self.text.encode(errors='replace')))}"

    @property
    def block(self) -> str:
        """The form in which a model reads it: a block of code that nothing inside can end."""
        longest = max((len(run) for run in re.findall(r"`{3,}", self.text)), default=2)
        fence = "`" * (longest + 1)
        suffix = self.name.rpartition(".")[2] if "." in self.name else ""
        language = suffix if re.fullmatch(r"\w{1,12}", suffix) else ""
        text = self.text.removesuffix("\n")
        return f"Attached file {one_line(self.name)}:\n{fence}{language}\n{text}\n{fence}"


def join(text: str, files: list[Attachment]) -> str:
    """A message with its files."""
    if not files:
        return text
    return "\n\n".join(part for part in (text.rstrip(), *(file.block for file in files)) if part)


def split(message: str) -> tuple[str, list[Attachment]]:
    """The person's words, and the files behind them."""
    found = list(_BLOCK.finditer(message))
    if not found:
        return message, []
    return message[: found[0].start()], [Attachment(match[1], match[3]) for match in found]
