"""Formatting of sizes, counts, ratios and times, the same everywhere on the screen."""

from __future__ import annotations

from datetime import date, datetime

from tqchat.units import size as size


def number(count: int) -> str:
    """A whole number with thousands separated: ``3,076``."""
    return f"{count:,}"


def tokens(count: int) -> str:
    """A count of tokens with its word: ``1 token``, ``3,076 tokens``."""
    return f"{count:,} token" if count == 1 else f"{count:,} tokens"


def short(count: int) -> str:
    """A large count in few characters: ``850``, ``56k``, ``1.2M``."""
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1_000:.0f}k" if count < 1_000_000 else f"{count / 1_000_000:.1f}M"


def kld(nats: float) -> str:
    """A mean KL divergence in nats: five places, the resolution above noise."""
    return f"{nats:.5f}" if nats else "0"


def ratio(value: float) -> str:
    """Ratio to FP16: ``3.8x``."""
    return f"{value:.1f}x" if value < 100 else f"{value:.0f}x"


def bits(value: float) -> str:
    """Bits per value: ``16``, ``4.13``."""
    return f"{value:.0f}" if abs(value - round(value)) < 0.005 else f"{value:.2f}"


def seconds(value: float) -> str:
    """A short time: ``0.2 s``, ``12 s``, ``3 min``."""
    if value < 0.95:
        return f"{value:.2f} s" if value < 0.095 else f"{value:.1f} s"
    if value < 9.95:
        return f"{value:.1f} s"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"


def speed(tokens_per_second: float) -> str:
    """Decode speed: ``71 tok/s``, ``4.2 tok/s``."""
    return f"{tokens_per_second:.0f} tok/s" if tokens_per_second >= 9.95 else f"{tokens_per_second:.1f} tok/s"


def clock(timestamp: float) -> str:
    """The local time of day: ``18:23``."""
    return datetime.fromtimestamp(timestamp).strftime("%H:%M")


def day(timestamp: float, today: date) -> str:
    """Heading of a conversation's group: Today, Yesterday, a weekday of this week, or a month."""
    then = datetime.fromtimestamp(timestamp).date()
    age = (today - then).days
    if age <= 0:
        return "Today"
    if age == 1:
        return "Yesterday"
    if age < 7:
        return then.strftime("%A")
    if then.year == today.year:
        return then.strftime("%B")
    return then.strftime("%B %Y")


def fit(text: str, width: int) -> str:
    """``text`` truncated with an ellipsis or padded to ``width`` cells."""
    from rich.cells import cell_len, set_cell_size

    if width <= 0:
        return ""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 1 else "…"


def text_size(text: str) -> str:
    """``1,234 characters``, and the lines if there are several."""
    characters = f"{number(len(text))} character" + ("" if len(text) == 1 else "s")
    lines = text.rstrip("\n").count("\n") + 1
    return characters if lines == 1 else f"{characters} in {number(lines)} lines"
