"""Finds the saved cache that shares the longest prefix with a prompt, among all caches of a vault."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqchat.errors import TqchatError
from tqchat.store.vault import branches
from tqchat.store.vault.manifest import MANIFEST, Manifest, read_manifest
from tqchat.store.vault.vault import Vault


@dataclass(frozen=True)
class _Known:
    """A manifest as it was read, and its tokens."""

    version: tuple[int, int]
    manifest: Manifest | None
    tokens: array[int]


class PrefixIndex:
    """The tokens of a vault's caches, read again where a manifest has changed."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._known: dict[Path, _Known] = {}

    def longest(self, tokens: Sequence[int], *, fingerprint: str, scheme: str) -> tuple[str, int]:
        """The id of the cache from which most leading tokens can be restored, and how many; ``("", 0)`` if
        none."""
        wanted = array("I", tokens)
        best, most = "", 0
        known: dict[Path, _Known] = {}
        for entry in self._vault.entries():
            for path in (entry.folder / MANIFEST, *branches.branch_manifests(entry.folder)):
                if (one := self._read(path)) is None:
                    continue
                known[path] = one
                manifest = one.manifest
                if manifest is None or manifest.mismatch(entry.conversation, fingerprint, scheme) is not None:
                    continue
                count = manifest.restorable_tokens(branches.shared_tokens(one.tokens, wanted))
                if count > most:
                    best, most = entry.conversation, count
        self._known = known
        return best, most

    def _read(self, path: Path) -> _Known | None:
        try:
            about = path.stat()
        except OSError:
            return None
        version = about.st_mtime_ns, about.st_size
        known = self._known.get(path)
        if known is not None and known.version == version:
            return known
        try:
            manifest = read_manifest(path)
        except (TqchatError, OSError):
            return _Known(version, None, array("I"))
        return _Known(version, manifest, array("I", branches.read_tokens(path.parent, manifest)))
