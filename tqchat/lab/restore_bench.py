"""Times restoring a saved cache against reading the tokens again, and measures its size on disk."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import Sampling
from tqchat.engine.decoding import Decoder
from tqchat.engine.models import LoadedModel
from tqchat.lab.reading import encode, read_text
from tqchat.lab.tables import markdown
from tqchat.store.vault import Restored, SaveResult, Vault
from tqchat.units import size

LENGTHS = (1024, 4096)
LONG_LENGTH = 16384
TURN_TOKENS = 200
"""Tokens added before the second save: a question and its answer."""
REPLY_TOKENS = 24
"""Tokens fed one by one at the end, so that the prompt is packed."""
RESTORE_ROUNDS = 5
QUESTION_TOKENS = 16
"""Tokens of the message that follows."""


@dataclass(frozen=True)
class RestoreRow:
    """One length under one scheme. Times to the first token are medians, with the files in the page cache.

    Attributes:
        restore_s: From the files to a cache that can be used.
        cold_restore_s: The same with the files dropped from the page cache; ``None`` if that is not possible
            on this system.
        question_s: Reading the next message, of ``QUESTION_TOKENS`` tokens.
        first_step_s: From there to the first token.
    """

    scheme: str
    tokens: int
    read_s: float
    save_s: float
    restore_s: float
    cold_restore_s: float | None
    question_s: float
    first_step_s: float
    memory_bytes: int
    disk_bytes: int
    turn_tokens: int
    turn_written_bytes: int


def measure(
    model: LoadedModel,
    schemes: Sequence[str],
    lengths: Sequence[int] = LENGTHS,
    progress: Callable[[str], None] = lambda what: None,
) -> Iterator[RestoreRow]:
    """Read, save and restore ``lengths`` tokens of the built-in text under each scheme."""
    # The text is repeated as needed: the time does not depend on the tokens.
    text = encode(model, read_text(Path(__file__).with_name("text.txt")))
    for scheme in schemes:
        for length in lengths:
            progress(f"{scheme}, {length:,} tokens")
            ids = (text * ((length + TURN_TOKENS) // len(text) + 1))[: length + TURN_TOKENS]
            with tempfile.TemporaryDirectory() as folder:
                yield _row(model, scheme, ids, length, Vault(Path(folder) / "caches", budget=1000))


def table(rows: Sequence[RestoreRow]) -> str:
    """The rows as Markdown."""
    header = ["scheme", "tokens", "re-read", "restore", "from the disk", "speed-up"]
    header += [f"{QUESTION_TOKENS} new tokens", "first token", "save"]
    header += ["in memory", "on disk", f"written after {TURN_TOKENS} more"]
    cells = [
        [
            f"`{row.scheme}`",
            f"{row.tokens:,}",
            f"{row.read_s:.2f} s",
            f"{1000 * row.restore_s:.1f} ms",
            "" if row.cold_restore_s is None else f"{1000 * row.cold_restore_s:.1f} ms",
            f"{row.read_s / row.restore_s:,.0f}",
            f"{1000 * row.question_s:.1f} ms",
            f"{1000 * row.first_step_s:.1f} ms",
            f"{1000 * row.save_s:.1f} ms",
            *(size(count) for count in (row.memory_bytes, row.disk_bytes, row.turn_written_bytes)),
        ]
        for row in rows
    ]
    return markdown(header, cells, right=tuple(range(1, len(header))))


def _row(model: LoadedModel, scheme: str, ids: list[int], length: int, vault: Vault) -> RestoreRow:
    held = PromptCache(model, scheme)
    began = time.perf_counter()
    for _ in held.prefill_in_chunks(ids[: length - REPLY_TOKENS]):
        pass
    # A re-read would prefill the reply's tokens with the prompt's, so scale to the whole length.
    read = (time.perf_counter() - began) * length / (length - REPLY_TOKENS)
    for token in ids[length - REPLY_TOKENS : length]:
        held.prefill([token])
    began = time.perf_counter()
    first = _save(held, vault)
    saved = time.perf_counter() - began
    held.settle(certain=True)  # as after a reply
    memory = held.report().bytes
    rounds = [_times_to_first_token(model, scheme, ids, length, vault) for _ in range(RESTORE_ROUNDS)]
    restore_s, question_s, first_step_s = (median(times) for times in zip(*rounds, strict=True))
    cold = [
        _times_to_first_token(model, scheme, ids, length, vault)[0]
        for _ in range(RESTORE_ROUNDS)
        if _drop_from_page_cache(vault)
    ]
    for _ in held.prefill_in_chunks(ids[length:-REPLY_TOKENS]):
        pass
    for token in ids[-REPLY_TOKENS:]:
        held.prefill([token])
    second = _save(held, vault)
    return RestoreRow(
        scheme=scheme,
        tokens=length,
        read_s=read,
        save_s=saved,
        restore_s=restore_s,
        cold_restore_s=median(cold) if cold else None,
        question_s=question_s,
        first_step_s=first_step_s,
        memory_bytes=memory,
        disk_bytes=first.bytes,
        turn_tokens=TURN_TOKENS,
        turn_written_bytes=second.bytes_written,
    )


def _times_to_first_token(
    model: LoadedModel, scheme: str, ids: list[int], length: int, vault: Vault
) -> tuple[float, float, float]:
    """Seconds to restore a cache, to read a message after it, and to its first token."""
    held = PromptCache(model, scheme)
    prompt = ids[: length + QUESTION_TOKENS + 1]
    began = time.perf_counter()
    found = vault.load("bench", fingerprint="bench", scheme=scheme)
    assert isinstance(found, Restored) and held.replace_with(found) is None
    restored = time.perf_counter()
    held.prefill(prompt[length:-1])
    read = time.perf_counter()
    next(iter(Decoder(held, prompt, Sampling(temperature=0.0), 1)))
    return restored - began, read - restored, time.perf_counter() - read


def _drop_from_page_cache(vault: Vault) -> bool:
    """Make the next reads of the vault's files come from the disk. ``False`` if this system cannot."""
    if sys.platform != "linux":
        return False
    for path in (path for entry in vault.entries() for path in entry.folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not written yet stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _save(held: PromptCache, vault: Vault) -> SaveResult:
    written = vault.save(
        "bench", held.cache, held.tokens, fingerprint="bench", scheme=held.scheme, pieces=held.pieces
    )
    held.pieces = written.pieces
    return written
