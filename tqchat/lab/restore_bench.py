"""Saved caches: how soon they come back, against reading the tokens again, and what they take on disk."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.models import LoadedModel
from tqchat.lab.reading import encode, read_text
from tqchat.lab.tables import markdown
from tqchat.store.vault import Restored, SaveResult, Vault

LENGTHS = (1024, 4096)
LONG = 16384
TURN = 200
"""Tokens that are added before the second save: a question and its answer."""
REPLY = 24
"""Tokens read one by one, so that packing has begun."""
RESTORES = 5


@dataclass(frozen=True)
class RestoreRow:
    """One length under one scheme. Times in seconds, sizes in bytes.

    ``restore`` is the median of five, files in the operating system's cache.
    """

    scheme: str
    tokens: int
    read: float
    save: float
    restore: float
    memory: int
    disk: int
    turn_tokens: int
    turn_written: int


def measure(
    model: LoadedModel,
    schemes: Sequence[str],
    lengths: Sequence[int] = LENGTHS,
    progress: Callable[[str], None] = lambda what: None,
) -> Iterator[RestoreRow]:
    """Read, save and restore ``lengths`` tokens of the built-in text under each scheme."""
    # A short text is read again and again: how long tokens take does not depend on which they are.
    text = encode(model, read_text(Path(__file__).with_name("text.txt")))
    for scheme in schemes:
        for length in lengths:
            progress(f"{scheme}, {length:,} tokens")
            ids = (text * ((length + TURN) // len(text) + 1))[: length + TURN]
            with tempfile.TemporaryDirectory() as folder:
                yield _row(model, scheme, ids, length, Vault(Path(folder) / "caches", budget=1000))


def table(rows: Sequence[RestoreRow]) -> str:
    """The rows as Markdown."""
    header = ["scheme", "tokens", "read again", "restore", "times sooner", "save"]
    header += ["in memory", "on disk", f"written after {TURN} more"]
    cells = [
        [
            f"`{row.scheme}`",
            f"{row.tokens:,}",
            f"{row.read:.2f} s",
            f"{1000 * row.restore:.1f} ms",
            f"{row.read / row.restore:,.0f}",
            f"{1000 * row.save:.1f} ms",
            *(f"{size / (1 << 20):.2f} MiB" for size in (row.memory, row.disk, row.turn_written)),
        ]
        for row in rows
    ]
    return markdown(header, cells, right=tuple(range(1, len(header))))


def _row(model: LoadedModel, scheme: str, ids: list[int], length: int, vault: Vault) -> RestoreRow:
    held = PromptCache(model, scheme)
    began = time.perf_counter()
    for _ in held.prefill_in_chunks(ids[: length - REPLY]):
        pass
    # The reply's tokens would come back with the prompt's, in one go.
    read = (time.perf_counter() - began) * length / (length - REPLY)
    for token in ids[length - REPLY : length]:
        held.prefill([token])
    began = time.perf_counter()
    first = _save(held, vault)
    saved = time.perf_counter() - began
    memory = held.report().bytes
    times = []
    for _ in range(RESTORES):
        other = PromptCache(model, scheme)
        began = time.perf_counter()
        found = vault.load("bench", fingerprint="bench", scheme=scheme)
        assert isinstance(found, Restored) and other.replace_with(found) is None
        times.append(time.perf_counter() - began)
    for _ in held.prefill_in_chunks(ids[length:-REPLY]):
        pass
    for token in ids[-REPLY:]:
        held.prefill([token])
    second = _save(held, vault)
    return RestoreRow(
        scheme=scheme,
        tokens=length,
        read=read,
        save=saved,
        restore=median(times),
        memory=memory,
        disk=first.bytes,
        turn_tokens=TURN,
        turn_written=second.bytes_written,
    )


def _save(held: PromptCache, vault: Vault) -> SaveResult:
    written = vault.save(
        "bench", held.cache, held.tokens, fingerprint="bench", scheme=held.scheme, pieces=held.pieces
    )
    held.pieces = written.pieces
    return written
