"""Conversations' caches on disk: segments that are written once, and a manifest that says which make a cache.

Caches are expendable, so anything doubtful is refused with a reason and the transcript is read again. MLX is
imported when tensors are written or read, not before."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqchat.errors import TqchatError
from tqchat.files import write_atomically
from tqchat.paths import UnusableFolder, make_private_folder
from tqchat.store.vault import branches, budget, segments
from tqchat.store.vault.cache_writer import Saving
from tqchat.store.vault.manifest import (
    MANIFEST,
    Manifest,
    Pieces,
    codec_version,
    covered,
    cut,
    read_manifest,
)
from tqchat.store.vault.segments import Interrupted, SegmentError

if TYPE_CHECKING:
    from tqchat.kv.checkpoint import Checkpoint

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", re.ASCII)
_STALE_SECONDS = 3600
"""A temporary file this old was left behind by a killed process."""
_DAMAGE = (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError, MemoryError)
"""What reading something else than was written can end in."""


class VaultError(TqchatError):
    """A cache could not be saved or removed."""


@dataclass(frozen=True)
class Written:
    """What a save did.

    Attributes:
        pieces: The segments that the next save of this cache can build on.
        bytes: What the conversation takes on disk.
        bytes_written: How much of that is new.
        complete: Whether it came to the end. If not, what was saved before is still what is saved.
    """

    pieces: Pieces
    bytes: int = 0
    bytes_written: int = 0
    complete: bool = True


@dataclass(frozen=True)
class Restored:
    """A cache that is exactly what was saved, or exactly that trimmed, and the tokens that it holds.

    Attributes:
        rounding: The fewest bits (of keys, of values) that its history has been through.
        pieces: The segments that the next save of this cache can build on.
        checkpoints: What it can go back to where it cannot be trimmed, the shortest first.
        damage: Why it is not all that was saved: the beginning of a sentence, without a full stop.
    """

    cache: list[Any]
    tokens: list[int]
    rounding: tuple[int, int]
    pieces: Pieces = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    damage: str | None = None


@dataclass(frozen=True)
class Refused:
    """Why there is no cache to continue from: the beginning of a sentence, without a full stop."""

    reason: str


class Vault:
    """The caches below one folder, which has a folder for each conversation.

    Args:
        folder: Where they are; it need not exist.
        budget: GiB that they may take together; ``None`` leaves it to ``budget.limit_for``.
    """

    def __init__(self, folder: Path, budget: float | None = None) -> None:
        self.folder = folder
        self.budget = budget

    def save(
        self,
        conversation_id: str,
        cache: list[Any],
        tokens: Sequence[int],
        *,
        fingerprint: str,
        scheme: str,
        model: str = "",
        rounding: tuple[int, int] = (16, 16),
        pieces: Pieces = (),
        checkpoints: Sequence[Checkpoint] = (),
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Written:
        """Write what is new in a conversation's cache.

        Tokens that are settled go into segments that no later save touches. The rest (the raw tail, windows,
        recurrent state) is bounded and written each time. The manifest is replaced last, in one step:
        whenever the process is killed, the old state or the new state is there, whole.

        Args:
            pieces: What an earlier save, or the load, of this very cache returned, ``cut`` to what has
                not been trimmed since.
            checkpoints: Of this cache, the shortest first. Those that are new are written, and know it then.
            interrupted: Asked every few megabytes; ends the save once it says yes.

        Raises:
            VaultError: if it cannot be written. What was saved before is then untouched.
        """
        folder = self._folder(conversation_id)
        kept = pieces
        try:
            make_private_folder(self.folder)
            make_private_folder(folder)
            saving = Saving(folder, cache, tokens, pieces, checkpoints, interrupted)
            self._make_room(conversation_id, folder, saving)
            try:
                for start, end in saving.due():
                    saving.write_segment(start, end)
                    kept = saving.pieces
                manifest = Manifest(
                    conversation=conversation_id,
                    fingerprint=fingerprint,
                    model=model,
                    scheme=scheme,
                    rounding=rounding,
                    layout=_layout(cache),
                    structure=saving.structure,
                    pieces=saving.pieces,
                    checkpoints=saving.write_checkpoints(),
                    rest=saving.write_rest(),
                    tokens=len(tokens),
                    prefix_is_usable=saving.prefix_is_usable,
                    saved_at=time.time(),
                    codec=codec_version(),
                    mlx_lm=metadata.version("mlx-lm"),
                )
            except Interrupted:
                return Written(saving.pieces, bytes_written=saving.written, complete=False)
            content = manifest.to_json()
            segments.sync_folder(folder)
            branches.keep_other(folder, manifest, tokens)
            write_atomically(folder / MANIFEST, content)
            with suppress(
                OSError
            ):  # the save is whole already; lost power could at most bring back the last one
                segments.sync_folder(folder)
        except (UnusableFolder, OSError, RuntimeError) as error:
            _remove_leftovers(folder, pieces)
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise VaultError(
                f"The cache could not be saved ({reason}); the chat goes on, "
                "and the conversation is read again after the next start."
            ) from error
        _remove_leftovers(folder, kept)
        return Written(kept, self.size(conversation_id), saving.written + len(content))

    def load(
        self,
        conversation_id: str,
        *,
        fingerprint: str,
        scheme: str,
        wanted: Sequence[int] = (),
    ) -> Restored | Refused | None:
        """Bring a conversation's cache back, in memory, as far as it is whole.

        Args:
            fingerprint: Of the model that is to continue from it.
            scheme: The one that the conversation is under now.
            wanted: The transcript's tokens: of several branches, the one that shares most of them is taken.

        Returns:
            The cache; or why the one on disk cannot be used; or ``None`` if none was saved.
        """
        try:
            folder = self._folder(conversation_id)
            if not (folder / MANIFEST).exists():
                return None
            found, reason = _fitting(folder, conversation_id, fingerprint, scheme)
            if not found:
                return Refused(reason or "The saved cache cannot be read")
            path, manifest = branches.nearest(folder, found, wanted)
            restored = _restore(folder, manifest)
            os.utime(path)
            os.utime(folder / MANIFEST)
            return restored
        except TqchatError as error:
            return Refused(str(error).rstrip("."))
        except OSError as error:
            return Refused(f"The saved cache cannot be read ({error.strerror or error})")
        except _DAMAGE as error:
            return Refused(f"The saved cache is damaged ({type(error).__name__})")

    def reach(self, conversation_id: str, *, fingerprint: str, scheme: str, wanted: Sequence[int]) -> int:
        """How many of the ``wanted`` tokens ``load`` would bring back, if the files are what they say."""
        try:
            folder = self._folder(conversation_id)
            found, _ = _fitting(folder, conversation_id, fingerprint, scheme)
            return max((branches.reach(folder, manifest, wanted) for _, manifest in found), default=0)
        except (TqchatError, OSError):
            return 0

    def scheme(self, conversation_id: str) -> str | None:
        """The scheme of a saved cache, ``None`` if none was saved or its manifest cannot be read."""
        try:
            return read_manifest(self._folder(conversation_id) / MANIFEST).scheme
        except (TqchatError, OSError):
            return None

    def forget(self, conversation_id: str) -> None:
        """Remove a conversation's cache from disk.

        Raises:
            VaultError: if it is there and stays there.
        """
        folder = self._folder(conversation_id)
        try:
            # Without its manifest a segment is nothing, whatever happens next.
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise VaultError(
                f"The cache in {folder} could not be removed: {error.strerror or error}."
            ) from error

    def size(self, conversation_id: str) -> int:
        """Bytes that a conversation's cache takes on disk."""
        total = 0
        try:
            for path in self._folder(conversation_id).iterdir():
                total += path.stat().st_size
        except OSError:
            pass  # not saved, or being replaced this moment
        return total

    def entries(self) -> list[budget.Entry]:
        """All saved caches, that used longest ago first."""
        return budget.entries(self.folder)

    def limit(self) -> int:
        """Bytes that all caches together may take."""
        return budget.limit_for(self.folder, self.budget)

    def to_prune(self, keep: Sequence[str] = (), need: int = 0) -> list[budget.Entry]:
        """The caches that are over the budget or below the floor of free space, least recently used first."""
        surplus = budget.shortfall(self.folder, self.limit(), need)
        return budget.to_remove(self.entries(), surplus, keep)

    def prune(self, keep: Sequence[str] = (), need: int = 0) -> list[budget.Entry]:
        """Remove them; those that were."""
        removed = []
        for entry in self.to_prune(keep, need):
            try:
                self.forget(entry.conversation)
            except VaultError:
                continue  # it stays, and is tried again
            removed.append(entry)
        return removed

    def _make_room(self, conversation_id: str, folder: Path, saving: Saving) -> None:
        """Let the least recently used go, if a save needs their room; never the open conversation."""
        need = saving.bytes_due()
        self.prune([conversation_id], need)
        limit = self.limit()
        if need + saving.bytes_kept > limit:
            raise OSError(0, f"it takes more than the {limit / budget.GIB:.3g} GiB allowed")
        if budget.shortfall(folder, 1 << 62, need):
            raise OSError(0, "the disk is almost full")

    def _folder(self, conversation_id: str) -> Path:
        if not _ID.fullmatch(conversation_id):
            raise VaultError(f"{conversation_id!r} cannot be the id of a conversation.")
        return self.folder / conversation_id


def _fitting(
    folder: Path, conversation_id: str, fingerprint: str, scheme: str
) -> tuple[list[tuple[Path, Manifest]], str | None]:
    """The manifests that this conversation can go on from, and why the first of the others is none."""
    found: list[tuple[Path, Manifest]] = []
    reason: str | None = None
    for path in [folder / MANIFEST, *branches.files(folder)]:
        try:
            manifest = read_manifest(path)
            mismatch = manifest.mismatch(conversation_id, fingerprint, scheme)
        except TqchatError as error:
            mismatch = str(error).rstrip(".")
        if mismatch is None:
            found.append((path, manifest))
        reason = reason or mismatch
    return found, reason


def _restore(folder: Path, manifest: Manifest) -> Restored | Refused:
    from tqchat.kv import ranges

    parts, tokens, pieces, damage = [], [], [], None
    try:
        for piece in manifest.pieces:
            arrays = segments.read(folder, piece.file)
            tokens += _tokens(arrays, piece.end - piece.start)[: piece.used - piece.start]
            parts.append(
                ranges.shortened(arrays, piece.start, piece.used) if piece.used < piece.end else arrays
            )
            pieces.append(piece)
        arrays = segments.read(folder, manifest.rest)
        tokens += _tokens(arrays, manifest.tokens - covered(manifest.pieces))
        parts.append(arrays)
    except SegmentError as error:
        damage = str(error)
    checkpoints = _checkpoints(folder, manifest, len(tokens))
    whole: dict[int, Any] = {}
    if damage is not None and not manifest.prefix_is_usable:
        if not checkpoints:
            return Refused(f"The saved cache is damaged ({damage})")
        # The last one goes on as the cache itself.
        last = checkpoints.pop()
        whole, tokens = last.layers, tokens[: last.tokens]
        pieces = [piece for piece in pieces if piece.start < last.tokens]
        parts = [
            ranges.shortened(arrays, piece.start, min(piece.used, last.tokens))
            for arrays, piece in zip(parts, pieces, strict=False)
        ]
    if not tokens:
        return Refused(f"The saved cache is damaged ({damage})")
    cache = ranges.rebuild(manifest.structure, parts, len(tokens), whole)
    if _layout(cache) != manifest.layout:
        return Refused("The saved cache is damaged (its layers are not those that were saved)")
    if damage is not None:
        damage = f"The saved cache is damaged from token {len(tokens) + 1:,} on ({damage})"
    return Restored(
        cache=cache,
        tokens=tokens,
        rounding=manifest.rounding,
        pieces=cut(tuple(pieces), len(tokens)),
        checkpoints=tuple(checkpoints),
        damage=damage if len(tokens) < manifest.tokens else None,
    )


def _checkpoints(folder: Path, manifest: Manifest, tokens: int) -> list[Checkpoint]:
    """Those within the first ``tokens`` that are whole. One that is not is done without."""
    from tqchat.kv import checkpoint

    found = []
    for saved in manifest.checkpoints:
        try:
            if saved.tokens <= tokens:
                arrays = segments.read(folder, saved.file)
                found.append(checkpoint.rebuilt(saved.tokens, saved.layers, arrays))
                found[-1].stored = saved.file
        except (TqchatError, *_DAMAGE):
            continue
    return found


def _tokens(arrays: dict[str, Any], count: int) -> list[int]:
    tokens: list[int] = arrays.pop("tokens").tolist()
    if len(tokens) != count:
        raise SegmentError("a part of it holds other tokens than it should")
    return tokens


def _layout(cache: list[Any]) -> list[list[Any]]:
    """Kinds and shapes of a cache's layers."""
    from tqchat import kv

    layers = kv.memory_report(cache).layers
    return [[layer.kind, layer.scheme, layer.heads, layer.key_dim, layer.value_dim] for layer in layers]


def _remove_leftovers(folder: Path, pieces: Pieces) -> None:
    """Remove what no manifest names and no later save builds on; another process's unfinished file is left
    alone."""
    try:
        named = {piece.file.name for piece in pieces} | branches.named(folder)
        for path in folder.iterdir():
            fresh = path.name.startswith((segments.TEMPORARY, f".{MANIFEST}")) and (
                time.time() - path.stat().st_mtime < _STALE_SECONDS
            )
            kept = path.name == MANIFEST or path.name in named or fresh or branches.is_branch(path)
            if not kept:
                path.unlink(missing_ok=True)
    except (OSError, TqchatError):
        pass  # they cost room, nothing else; the next save tries again
