"""Sentences about engine events."""

from __future__ import annotations

from tqchat.engine import events
from tqchat.engine.events import MIN_REREAD_NOTICE_TOKENS
from tqchat.kv.memory import MemoryReport
from tqchat.ui import figures


def opened(event: events.Opened) -> str | None:
    """Summary of a restored cache; ``None`` if there was none."""
    if event.reason:
        return event.reason
    if not event.restored:
        return None
    unread = event.tokens - event.restored
    is_told = unread >= MIN_REREAD_NOTICE_TOKENS
    rest = f"the next message re-reads {figures.number(unread)}" if is_told else "nothing re-read"
    return f"Restored {figures.tokens(event.restored)}, {rest}."


def scheme_changed(event: events.SchemeChanged) -> str:
    """Summary of a scheme change: tokens converted, time, sizes before and after."""
    did = "Re-read" if event.reread else "Converted"
    is_same = event.previous == event.scheme
    schemes = f"under {event.scheme}" if is_same else f"from {event.previous} to {event.scheme}"
    sentence = (
        f"{did} {figures.tokens(event.tokens)} {schemes} in "
        f"{figures.seconds(event.seconds)}: "
        f"{figures.size(event.bytes_before)} → {figures.size(event.bytes_after)}."
    )
    if event.kept_rounding:
        sentence += f" {kept_rounding(event.report)}"
    return sentence if event.reread else f"{sentence} /scheme undo returns to {event.previous} by re-reading."


def kept_rounding(report: MemoryReport) -> str:
    """Tokens that keep the rounding of earlier schemes, by scheme, and the number of roundings."""
    keys, values = report.rounded_bits
    widths = [
        f"{name} at {bits} bit{'' if bits == 1 else 's'}"
        for name, bits in (("keys", keys), ("values", values))
        if bits < 16
    ]
    if report.rounded_times > 1:
        widths.append(f"rounded up to {report.rounded_times} times")
    kept = "History keeps its earlier rounding"
    return f"{kept}: {figures.tokens(report.rounded_tokens)}, {', '.join(widths)}." if widths else f"{kept}."


def ending(reason: events.StopReason) -> str | None:
    """Why a reply was cut off; ``None`` if it ended by itself or the user stopped it."""
    endings = {"length": "cut at the length limit", "context": "cut: the context is full"}
    return (endings | {"memory": "cut: the cache has reached its memory budget"}).get(reason)
