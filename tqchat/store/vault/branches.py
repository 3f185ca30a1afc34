"""A conversation's other branches: manifests that share segments with the live one. Nothing is copied."""

from __future__ import annotations

import json
import struct
import uuid
from array import array
from collections.abc import Sequence
from pathlib import Path

from tqchat.files import write_atomically
from tqchat.store.vault.manifest import BRANCH, MANIFEST, Manifest, ManifestError, covered, read_manifest

MOST_BRANCHES = 4


def files(folder: Path) -> list[Path]:
    """The manifests of other branches, that used last first."""
    found = [(path.stat().st_mtime, path) for path in folder.glob(f"{BRANCH}*.json")]
    return [path for _, path in sorted(found, reverse=True)]


def is_branch(path: Path) -> bool:
    """Whether a file is the manifest of another branch."""
    return path.name.startswith(BRANCH) and path.suffix == ".json"


def named(folder: Path) -> set[str]:
    """The segments that any manifest of the conversation names."""
    names: set[str] = set()
    for path in (folder / MANIFEST, *files(folder)):
        try:
            names |= read_manifest(path).files
        except (ManifestError, FileNotFoundError):
            continue  # what cannot be read names nothing
    return names


def keep_other(folder: Path, new: Manifest, tokens: Sequence[int]) -> None:
    """Before ``new`` becomes the live manifest: keep the one before it if it is another branch of the same
    conversation, and let go of branches that ``new`` contains or that are one too many.

    Args:
        tokens: What ``new`` holds.
    """
    try:
        old = read_manifest(folder / MANIFEST)
    except (ManifestError, FileNotFoundError):
        old = None
    if old is not None and _is_sibling(folder, old, new, tokens):
        # A copy: whenever the process is killed, there is a live manifest.
        content = (folder / MANIFEST).read_bytes()
        write_atomically(folder / f"{BRANCH}{uuid.uuid4().hex}.json", content)
    kept = 0
    for path in files(folder):
        try:
            fits = _is_sibling(folder, read_manifest(path), new, tokens)
        except ManifestError:
            fits = False
        if fits and kept < MOST_BRANCHES:
            kept += 1
        else:
            path.unlink(missing_ok=True)


def nearest(
    folder: Path, found: Sequence[tuple[Path, Manifest]], wanted: Sequence[int]
) -> tuple[Path, Manifest]:
    """The manifest whose cache can be continued furthest along ``wanted``, the first among equals."""
    if len(found) == 1 or not wanted:
        return found[0]
    return max(found, key=lambda one: reach(folder, one[1], wanted))


def reach(folder: Path, manifest: Manifest, wanted: Sequence[int]) -> int:
    """How many of the ``wanted`` tokens a cache can begin with."""
    return manifest.reach(_shared(tokens_of(folder, manifest), wanted))


def _is_sibling(folder: Path, old: Manifest, new: Manifest, tokens: Sequence[int]) -> bool:
    """Whether a manifest of the same kind of cache as another has segments of tokens that the other lacks."""
    same = (old.fingerprint, old.scheme, old.format, old.codec) == (
        new.fingerprint,
        new.scheme,
        new.format,
        new.codec,
    )
    used = {piece.file.name: piece.used for piece in new.pieces}
    if not same or all(piece.used <= used.get(piece.file.name, -1) for piece in old.pieces):
        return False
    # The same tokens may have been written anew; and what is damaged is not worth keeping.
    theirs = tokens_of(folder, old)
    return _shared(theirs, tokens) < covered(old.pieces) <= len(theirs)


def _shared(tokens: Sequence[int], wanted: Sequence[int]) -> int:
    for index, (mine, theirs) in enumerate(zip(tokens, wanted, strict=False)):
        if mine != theirs:
            return index
    return min(len(tokens), len(wanted))


def tokens_of(folder: Path, manifest: Manifest) -> list[int]:
    """A branch's tokens, read past its tensors: good enough to choose by."""
    tokens: list[int] = []
    try:
        for piece in manifest.pieces:
            tokens += _tokens_of(folder / piece.file.name)[: piece.used - piece.start]
        tokens += _tokens_of(folder / manifest.rest.name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, EOFError):
        pass  # as far as it goes
    return tokens


def _tokens_of(path: Path) -> list[int]:
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > path.stat().st_size:
            raise ValueError(path.name)
        start, end = json.loads(file.read(length))["tokens"]["data_offsets"]
        file.seek(8 + length + start)
        ids = array("I")
        ids.frombytes(file.read(end - start))
    return ids.tolist()
