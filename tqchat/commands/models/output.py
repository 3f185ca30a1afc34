"""Output of ``tqchat models``: tables, JSON and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tqchat.errors import TqchatError
from tqchat.text import one_line


class BadRequest(TqchatError):
    """An argument that cannot be used, or a missing confirmation."""

    exit_code = 2


def table(rows: list[list[str]], right: tuple[int, ...]) -> str:
    """Rows in columns; ``right`` are aligned to the right. The last column is as long as it is."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]) - 1)]
    lines = []
    for row in cells:
        aligned = [
            f"{cell:>{width}}" if column in right else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join([*aligned, row[-1]]).rstrip())
    return "\n".join(lines)


def print_problems(problems: Iterable[str | None]) -> None:
    """Print why models cannot be loaded, under their table."""
    said = [one_line(problem) for problem in problems if problem is not None]
    if said:
        print("", *said, sep="\n")


def print_json(content: Any) -> None:
    """Print a JSON value."""
    print(json.dumps(content, indent=2))
