"""The figures that the gauge's panel and line show."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tqchat.engine.memory.allocation import describe
from tqchat.kv.memory import MemoryReport, predict_bytes
from tqchat.kv.scheme import SCHEMES, Scheme
from tqchat.ui import figures
from tqchat.ui.controller.records import History


@dataclass(frozen=True)
class Reading:
    """Input of the gauge.

    Attributes:
        report: ``None`` until the engine has counted the cache.
        disk_bytes: Size of the saved cache; ``None`` if there is none.
        label: Shown instead of the scheme's name if not empty.
        budget: Memory budget in bytes.
        speed: Decode speed in tokens per second.
        request_bytes: Caches of other programs' requests in memory.
        context_left: Tokens until the context limit; ``None`` without a limit.
        is_reading: Whether the conversation's prompt is being read.
    """

    scheme: Scheme
    report: MemoryReport | None
    history: History
    disk_bytes: int | None = None
    label: str = ""
    budget: int | None = None
    speed: float | None = None
    context_left: int | None = None
    request_bytes: int = 0
    is_reading: bool = False

    @property
    def fraction(self) -> float:
        """Cache bytes divided by FP16 bytes."""
        report = self.report
        return report.bytes / report.fp16_bytes if report and report.fp16_bytes else 0.0

    @property
    def coverage(self) -> str:
        """``8 of 8``: layers with packed tokens."""
        report = self.report
        return f"{report.layers_compressed} of {report.layers_total}" if report else ""

    @property
    def is_waiting(self) -> bool:
        """Whether a scheme that compresses has not compressed anything yet."""
        report = self.report
        if not self.scheme.compresses or (report is not None and report.packed_tokens):
            return False
        return report is None or not report.tokens or any(layer.reason is None for layer in report.layers)

    @property
    def start(self) -> str:
        """When the first tokens will be compressed, as a sentence."""
        if self.is_reading:
            return "Raw while it is being read."
        if not self._until_start:
            return "Compression starts with the next reply."
        return f"Compression starts after {self._until_start}."

    @property
    def short_start(self) -> str:
        """The same in a few words."""
        if self.is_reading:
            return "raw so far"
        return f"compressed {f'after {self._until_start}' if self._until_start else 'with the next reply'}"

    @property
    def _until_start(self) -> str:
        """The tokens until then; empty if there are enough."""
        held = self.report.tokens if self.report else 0
        missing = self.scheme.sinks + self.scheme.least_to_encode() - held
        return f"{figures.number(missing)} {'more ' if held else ''}tokens" if missing > 0 else ""

    @property
    def explanations(self) -> list[str]:
        """Why some layers are never packed, and which have more bits than others."""
        report = self.report
        if report is None or not self.scheme.compresses:
            return []
        sentences = []
        reached = [layer for layer in report.layers if layer.reason is None]
        reasons = Counter(layer.reason for layer in report.layers if layer.reason is not None)
        for reason, count in reasons.items():
            sentences.append(f"{count} {'layer stays' if count == 1 else 'layers stay'} as is: {reason}")
        if words := describe([(layer.key_bits, layer.value_bits) for layer in reached]):
            sentences.append(words)
        return sentences


def bits(report: MemoryReport, side: str) -> float | None:
    """Average bits per key or value, tail and sinks included; ``None`` without tokens."""
    count = sum(
        layer.tokens * layer.heads * (layer.key_dim if side == "keys" else layer.value_dim)
        for layer in report.layers
    )
    held = report.key_bytes if side == "keys" else report.value_bytes
    return held * 8 / count if count else None


def scheme_sizes(report: MemoryReport) -> list[tuple[str, int, bool]]:
    """Name, bytes for these tokens, and whether it is active, for each listed scheme.

    Bytes are counted for the active scheme and predicted for the others.
    """
    return [
        (scheme.name, report.bytes, True)
        if scheme.name == report.scheme
        else (scheme.name, predict_bytes(report, scheme), False)
        for scheme in SCHEMES
    ]
