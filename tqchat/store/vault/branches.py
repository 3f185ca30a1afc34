"""Manifests of a conversation's other branches, which share segments with the current one."""

from __future__ import annotations

import json
import os
import struct
import uuid
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tqchat.errors import TqchatError
from tqchat.files import open_regular, write_atomically
from tqchat.store.vault.manifest import (
    BRANCH_PREFIX,
    MANIFEST,
    Manifest,
    ManifestError,
    covered_tokens,
    read_manifest,
)
from tqchat.store.vault.segments import MAX_HEADER_BYTES

MAX_BRANCHES = 4


def branch_manifests(folder: Path) -> list[Path]:
    """The manifest files of other branches, most recently used first."""
    found = []
    for path in folder.glob(f"{BRANCH_PREFIX}*.json"):
        with suppress(FileNotFoundError):  # removed meanwhile
            found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)]


def is_branch_manifest(path: Path) -> bool:
    """Whether a file is the manifest of another branch."""
    return path.name.startswith(BRANCH_PREFIX) and path.suffix == ".json"


def referenced_files(folder: Path) -> set[str]:
    """Names of the segment files that the conversation's manifests refer to."""
    names: set[str] = set()
    for path in (folder / MANIFEST, *branch_manifests(folder)):
        try:
            names |= read_manifest(path).files
        except (ManifestError, FileNotFoundError):
            continue  # an unreadable manifest refers to nothing
    return names


def keep_previous(
    folder: Path,
    new: Manifest,
    tokens: Sequence[int],
    limit: int = MAX_BRANCHES,
    durable: bool = True,
) -> None:
    """Prepare replacing the current manifest with ``new``.

    Keeps the current manifest as a branch if it is one, and removes the branches that ``new`` contains and
    those beyond ``limit``.

    Args:
        tokens: The tokens of ``new``.
        durable: As for ``write_atomically``.
    """
    try:
        old = read_manifest(folder / MANIFEST)
    except (ManifestError, FileNotFoundError):
        old = None
    if old is not None and _is_sibling(folder, old, new, tokens):
        # A copy, so that a kill at any time leaves a current manifest.
        content = (folder / MANIFEST).read_bytes()
        write_atomically(folder / f"{BRANCH_PREFIX}{uuid.uuid4().hex}.json", content, durable)
    kept = 0
    for path in branch_manifests(folder):
        try:
            fits = _is_sibling(folder, read_manifest(path), new, tokens)
        except ManifestError:
            fits = False
        if fits and kept < limit:
            kept += 1
        else:
            path.unlink(missing_ok=True)


def best_match(
    folder: Path, found: Sequence[tuple[Path, Manifest]], target: Sequence[int]
) -> tuple[Path, Manifest]:
    """The manifest whose cache has the longest usable prefix of ``target``; ties go to the first."""
    if len(found) == 1 or not target:
        return found[0]
    return max(found, key=lambda one: restorable_tokens(folder, one[1], target))


def restorable_tokens(folder: Path, manifest: Manifest, target: Sequence[int]) -> int:
    """Number of leading tokens of ``target`` that a cache can be continued from."""
    return manifest.restorable_tokens(shared_tokens(read_tokens(folder, manifest), target))


def _is_sibling(folder: Path, old: Manifest, new: Manifest, tokens: Sequence[int]) -> bool:
    """Whether ``old`` is another branch of the same kind of cache: it has segments that ``new`` lacks."""
    same = (old.fingerprint, old.scheme, old.format, old.codec) == (
        new.fingerprint,
        new.scheme,
        new.format,
        new.codec,
    )
    used = {piece.file.name: piece.used for piece in new.pieces}
    if not same or all(piece.used <= used.get(piece.file.name, -1) for piece in old.pieces):
        return False
    # Not a branch if ``new`` has the same tokens in other segments, or if ``old`` is damaged.
    theirs = read_tokens(folder, old)
    return shared_tokens(theirs, tokens) < covered_tokens(old.pieces) <= len(theirs)


def shared_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix of two token sequences."""
    a, b = array("I", one), array("I", other)
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # the first ``low`` agree, the first ``high`` do not
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def read_tokens(folder: Path, manifest: Manifest) -> list[int]:
    """A branch's tokens, read without its tensors and without checksums."""
    tokens: list[int] = []
    try:
        for piece in manifest.pieces:
            tokens += _read_file_tokens(folder / piece.file.name)[: piece.used - piece.start]
        tokens += _read_file_tokens(folder / manifest.rest.name)
    except (TqchatError, OSError, LookupError, TypeError, ValueError, RecursionError, struct.error):
        pass  # return the tokens read so far
    return tokens


def _read_file_tokens(path: Path) -> list[int]:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = struct.unpack("<Q", file.read(8))[0]
        if length > min(size, MAX_HEADER_BYTES):
            raise ValueError(path.name)
        start, end = json.loads(file.read(length))["tokens"]["data_offsets"]
        if not (type(start) is type(end) is int and 0 <= start <= end <= size):
            raise ValueError(path.name)
        file.seek(8 + length + start)
        ids = array("I")
        ids.frombytes(file.read(end - start))
    return ids.tolist()
