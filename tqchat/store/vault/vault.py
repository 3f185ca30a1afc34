"""The vault: conversations' KV caches on disk, as write-once segments and a manifest.

A cache can always be rebuilt from the transcript, so one that does not verify is refused with a reason.
MLX is imported only when tensors are written or read."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqchat.errors import TqchatError
from tqchat.files import reason_of, remove_leftovers, write_atomically
from tqchat.paths import UnusableFolder, make_private_folder
from tqchat.store.vault import branches, budget, segments
from tqchat.store.vault.cache_writer import CacheWriter
from tqchat.store.vault.manifest import (
    BRANCH_PREFIX,
    MANIFEST,
    Manifest,
    Pieces,
    codec_version,
    mlx_lm_version,
    read_manifest,
)
from tqchat.store.vault.restore import READ_ERRORS, Refused, Restored, layout, restore
from tqchat.store.vault.segments import Interrupted
from tqchat.units import size

if TYPE_CHECKING:
    from tqchat.kv.checkpoint import Checkpoint

_STALE_TEMPORARY_S = 3600
"""Older temporary files were left by a killed process."""
_NO_BUDGET_BYTES = 1 << 62


class VaultError(TqchatError):
    """A cache could not be saved or removed."""


@dataclass(frozen=True)
class SaveResult:
    """The result of a save.

    Attributes:
        pieces: Segments that the next save of this cache can reuse.
        bytes: Size of the conversation's caches on disk.
        bytes_written: Bytes that this save wrote.
        complete: False if it was interrupted; the previous saved state is then still current.
    """

    pieces: Pieces
    bytes: int = 0
    bytes_written: int = 0
    complete: bool = True


class Vault:
    """Saved caches in a folder, with a subfolder per conversation.

    Args:
        folder: The folder; it need not exist.
        budget: Disk budget in GB; ``None`` for the default of ``budget.budget_bytes``.
        max_branches: Other branches kept of each conversation.
        durable: Whether a save is flushed to disk. If not, a power loss can cost the caches that were saved
            last; they do not verify then. A kill costs nothing in either case.

    Attributes:
        lesser: A vault whose caches get what the budget of this one leaves, and are deleted first.
    """

    def __init__(
        self,
        folder: Path,
        budget: float | None = None,
        max_branches: int = branches.MAX_BRANCHES,
        durable: bool = True,
    ) -> None:
        self.folder = folder
        self.budget = budget
        self.lesser: Vault | None = None
        self._max_branches = max_branches
        self._durable = durable
        self._greater: Vault | None = None

    def with_lesser(
        self, folder: Path, max_branches: int = branches.MAX_BRANCHES, durable: bool = True
    ) -> Vault:
        """Make the vault ``lesser``, in another folder on the same disk, and return it."""
        self.lesser = Vault(folder, self.budget, max_branches, durable)
        self.lesser._greater = self
        return self.lesser

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
    ) -> SaveResult:
        """Save a conversation's cache, writing only what is new.

        Immutable tokens (see ``tqchat.kv.ranges``) go into segments that later saves do not rewrite. The rest
        (raw tail, windows, recurrent state) is bounded in size and written each time. The manifest is
        replaced last and atomically, so a kill at any time leaves either the old or the new state.

        Args:
            pieces: From the last save or load of this cache, trimmed (``trim_pieces``) like the cache.
            checkpoints: Checkpoints of this cache, shortest first. New ones are written and marked as stored.
            interrupted: Called every few megabytes; the save ends when it returns true.

        Raises:
            VaultError: if writing fails. The previous saved state is intact.
        """
        folder = self._folder(conversation_id)
        kept = pieces
        try:
            make_private_folder(self.folder)
            make_private_folder(folder)
            writer = CacheWriter(folder, cache, tokens, pieces, checkpoints, interrupted, self._durable)
            keeps_earlier = self._make_room(conversation_id, folder, writer)
            try:
                for start, end in writer.pending_ranges():
                    writer.write_segment(start, end)
                    kept = writer.pieces
                manifest = Manifest(
                    conversation=conversation_id,
                    fingerprint=fingerprint,
                    model=model,
                    scheme=scheme,
                    rounding=rounding,
                    layout=layout(cache),
                    structure=writer.structure,
                    pieces=writer.pieces,
                    checkpoints=writer.write_checkpoints(),
                    rest=writer.write_rest(),
                    earlier=writer.write_earlier(new=keeps_earlier),
                    tokens=len(tokens),
                    prefix_is_usable=writer.prefix_is_usable,
                    saved_at=time.time(),
                    codec=codec_version(),
                    mlx_lm=mlx_lm_version(),
                )
            except Interrupted:
                return SaveResult(writer.pieces, bytes_written=writer.written, complete=False)
            content = manifest.to_json()
            if self._durable:
                segments.sync_folder(folder)
            branches.keep_previous(folder, manifest, tokens, self._max_branches, self._durable)
            write_atomically(folder / MANIFEST, content, self._durable)
            if self._durable:
                # The save is complete; without this a power loss could at most restore the previous one.
                with suppress(OSError):
                    segments.sync_folder(folder)
        except (UnusableFolder, OSError, RuntimeError) as error:
            _remove_leftovers(folder, pieces)
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise VaultError(
                f"The cache could not be saved ({reason}). You can go on; "
                "after the next start the model has to read the conversation again."
            ) from error
        _remove_leftovers(folder, kept)
        return SaveResult(kept, self.size(conversation_id), writer.written + len(content))

    def load(
        self,
        conversation_id: str,
        *,
        fingerprint: str,
        scheme: str,
        transcript: Sequence[int] = (),
    ) -> Restored | Refused | None:
        """Load a conversation's cache into memory, up to the first damaged segment.

        Args:
            fingerprint: Fingerprint of the model that will use it.
            scheme: The conversation's current scheme.
            transcript: The transcript's tokens; selects the branch with the longest common prefix.

        Returns:
            The cache; or why the saved one cannot be used; or ``None`` if none was saved.
        """
        try:
            folder = self._folder(conversation_id)
            if not (folder / MANIFEST).exists():
                return None
            found, reason = _matching_manifests(folder, conversation_id, fingerprint, scheme)
            if not found:
                return Refused(reason or "The saved cache cannot be read")
            path, manifest = branches.best_match(folder, found, transcript)
            restored = restore(folder, manifest)
            os.utime(path)
            os.utime(folder / MANIFEST)
            return restored
        except TqchatError as error:
            return Refused(str(error).rstrip("."))
        except OSError as error:
            return Refused(f"The saved cache cannot be read ({error.strerror or error})")
        except READ_ERRORS as error:
            return Refused(f"The saved cache is damaged ({type(error).__name__})")

    def restorable_tokens(
        self, conversation_id: str, *, fingerprint: str, scheme: str, transcript: Sequence[int]
    ) -> int:
        """Number of ``transcript`` tokens that ``load`` would restore if no file is damaged."""
        try:
            folder = self._folder(conversation_id)
            found, _ = _matching_manifests(folder, conversation_id, fingerprint, scheme)
            return max(
                (branches.restorable_tokens(folder, manifest, transcript) for _, manifest in found), default=0
            )
        except (TqchatError, OSError):
            return 0

    def scheme(self, conversation_id: str) -> str | None:
        """The scheme of the saved cache; ``None`` if there is none or its manifest cannot be read."""
        try:
            return read_manifest(self._folder(conversation_id) / MANIFEST).scheme
        except (TqchatError, OSError):
            return None

    def remove(self, conversation_id: str) -> None:
        """Delete a conversation's caches from disk.

        Raises:
            VaultError: if they cannot be deleted.
        """
        folder = self._folder(conversation_id)
        failed: list[BaseException] = []
        if folder.is_symlink():
            raise VaultError(f"{folder} is a link, which tqchat does not make; delete it.")

        def note(function: object, path: str, found: tuple[object, BaseException, object]) -> None:
            failed.append(found[1])

        # Manifest first: segments without one are never used. A folder in its place goes with the rest.
        with suppress(OSError):
            (folder / MANIFEST).unlink(missing_ok=True)
        with suppress(OSError):
            if stat.S_IMODE(folder.lstat().st_mode) & 0o700 != 0o700:
                make_private_folder(folder)
        shutil.rmtree(folder, onerror=note)
        remaining = [
            error
            for error in failed
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        ]
        if remaining:
            raise VaultError(
                f"The cache in {folder} could not be deleted ({reason_of(remaining[0])}); delete the folder."
            )

    def size(self, conversation_id: str) -> int:
        """Bytes of a conversation's caches on disk."""
        total = 0
        try:
            for path in self._folder(conversation_id).iterdir():
                total += path.stat().st_size
        except OSError:
            pass  # nothing saved, or being replaced
        return total

    def remove_empty(self) -> None:
        """Delete the folders of caches that hold nothing."""
        for conversation_id in budget.empty_entries(self.folder):
            with suppress(OSError):
                self._folder(conversation_id).rmdir()

    def foreign_files(self) -> dict[Path, str]:
        """What lies in the folder and is no saved cache, each with the reason; it is never deleted."""
        return budget.foreign_files(self.folder)

    def entries(self) -> list[budget.CacheEntry]:
        """All saved caches, least recently used first."""
        return budget.entries(self.folder)

    def budget_bytes(self) -> int:
        """The disk budget for all caches, in bytes; of a lesser vault, what the other one leaves of it."""
        if self._greater is None:
            others = [] if self.lesser is None else self.lesser.entries()
            return budget.budget_bytes(self.folder, self.budget, sum(entry.bytes for entry in others))
        used = sum(entry.bytes for entry in self._greater.entries())
        return max(0, self._greater.budget_bytes() - used)

    def prune_candidates(self, keep: Sequence[str] = (), need: int = 0) -> list[budget.CacheEntry]:
        """The caches to delete to meet the budget and the reserved disk space, least recently used first.

        Only what ``prune_earlier`` does not free is considered.
        """
        found = self.entries()
        surplus = budget.excess_bytes(self.folder, self.budget_bytes(), need)
        surplus -= sum(file.bytes for file in budget.earlier_files(found, surplus))
        return budget.least_recently_used(map(budget.without_earlier, found), surplus, keep)

    def prune_earlier(self, need: int = 0, *, dry_run: bool = False) -> int:
        """Delete tokens of earlier schemes, as far as that is needed to meet the budget; returns the bytes.

        They only make going back to an earlier scheme exact.
        """
        deleted = 0
        surplus = budget.excess_bytes(self.folder, self.budget_bytes(), need)
        for file in budget.earlier_files(self.entries(), surplus):
            with suppress(OSError):
                if not dry_run:
                    file.path.unlink()
                deleted += file.bytes
        return deleted

    def prune(self, keep: Sequence[str] = (), need: int = 0) -> list[budget.CacheEntry]:
        """Delete tokens of earlier schemes, then the prune candidates; returns the caches deleted.

        Caches of a lesser vault are deleted before them.
        """
        if self.lesser is not None:
            self.lesser.prune()
            surplus = budget.excess_bytes(self.lesser.folder, _NO_BUDGET_BYTES, need)
            for entry in budget.least_recently_used(self.lesser.entries(), surplus):
                with suppress(VaultError):
                    self.lesser.remove(entry.conversation)
        self.prune_earlier(need)
        removed = []
        for entry in self.prune_candidates(keep, need):
            try:
                self.remove(entry.conversation)
            except VaultError:
                continue  # tried again at the next prune
            removed.append(entry)
        return removed

    def remove_leftovers(self) -> None:
        """Delete temporary files of killed processes."""
        for entry in self.entries():
            for prefix in (segments.TEMPORARY_PREFIX, f".{MANIFEST}.", f".{BRANCH_PREFIX}"):
                remove_leftovers(entry.folder, prefix)

    def remove_orphans(self, known: Collection[str]) -> None:
        """Delete the caches of conversations that no longer exist."""
        for entry in self.entries():
            if entry.conversation not in known and (entry.folder / MANIFEST).exists():
                with suppress(VaultError):
                    self.remove(entry.conversation)

    def _make_room(self, conversation_id: str, folder: Path, writer: CacheWriter) -> bool:
        """Prune other conversations' caches if a save needs their space.

        Returns:
            Whether there is room for tokens of earlier schemes as well: nothing is pruned for them.
        """
        need = writer.pending_bytes()
        self.prune([conversation_id], need)
        limit = self.budget_bytes()
        if budget.excess_bytes(folder, _NO_BUDGET_BYTES, need):  # only the reserved disk space counts
            raise OSError(0, "the disk is almost full")
        if need + writer.reused_bytes > limit:
            raise OSError(0, f"it needs more than the cache budget of {size(limit)}")
        return not budget.excess_bytes(self.folder, limit, need + writer.pending_earlier_bytes())

    def _folder(self, conversation_id: str) -> Path:
        if not budget.ID.fullmatch(conversation_id):
            raise VaultError(f"{conversation_id!r} is not a valid conversation id.")
        return self.folder / conversation_id


def _matching_manifests(
    folder: Path, conversation_id: str, fingerprint: str, scheme: str
) -> tuple[list[tuple[Path, Manifest]], str | None]:
    """The usable manifests of a conversation, and why the first unusable one was refused."""
    found: list[tuple[Path, Manifest]] = []
    reason: str | None = None
    for path in [folder / MANIFEST, *branches.branch_manifests(folder)]:
        try:
            manifest = read_manifest(path)
            mismatch = manifest.mismatch(conversation_id, fingerprint, scheme)
        except TqchatError as error:
            mismatch = str(error).rstrip(".")
        if mismatch is None:
            found.append((path, manifest))
        reason = reason or mismatch
    return found, reason


def _remove_leftovers(folder: Path, pieces: Pieces) -> None:
    """Delete files that no manifest and no later save refers to, except other processes' temporary files."""
    try:
        named = {piece.file.name for piece in pieces} | branches.referenced_files(folder)
        for path in folder.iterdir():
            fresh = path.name.startswith((segments.TEMPORARY_PREFIX, f".{MANIFEST}")) and (
                time.time() - path.stat().st_mtime < _STALE_TEMPORARY_S
            )
            kept = path.name == MANIFEST or path.name in named or fresh or branches.is_branch_manifest(path)
            if not kept:
                path.unlink(missing_ok=True)
    except (OSError, TqchatError):
        pass  # leftovers only take space; the next save tries again
