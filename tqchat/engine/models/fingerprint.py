"""Fingerprint of a model: saved caches of another fingerprint are not used."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

FULL_HASH_MAX_BYTES = 64 << 20
"""Larger weight files are sampled."""

_SAMPLES = 64
_SAMPLE_BYTES = 64 << 10
_MAX_HEADER_BYTES = 256 << 20
_TEXT_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "additional_chat_templates/*.jinja")


def fingerprint(folder: Path, *traits: str) -> str:
    """SHA-256 of a model folder and of how it is loaded.

    Covers config, tokenizer and chat template. Of a weight file over ``FULL_HASH_MAX_BYTES`` it covers the
    header, the size and 64 blocks: hashing tens of gigabytes at every start would take too long.

    Args:
        traits: Whatever else a cache depends on (compute dtype, cache dtype).
    """
    digest = hashlib.sha256()
    texts = sorted({path for pattern in _TEXT_PATTERNS for path in folder.glob(pattern) if path.is_file()})
    for path in texts:
        _add(digest, path.name, path.read_bytes())  # the folder's check bounds their size
    for path in sorted(folder.glob("*.safetensors")):
        _add(digest, path.name, weights_digest(path))
    for trait in traits:
        _add(digest, "trait", trait.encode())
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, content: bytes) -> None:
    # Length-prefixed, so that different lists of parts cannot give the same bytes.
    for part in (name.encode(), content):
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)


def weights_digest(path: Path) -> bytes:
    """Digest of a weight file; of a large one, of its header, size and 64 blocks."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(struct.pack("<Q", size))
    with path.open("rb") as file:
        if size <= FULL_HASH_MAX_BYTES:
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.digest()
        prefix = file.read(8)
        length = min(struct.unpack("<Q", prefix)[0], _MAX_HEADER_BYTES)
        digest.update(prefix)
        digest.update(file.read(length))
        start = 8 + length
        for index in range(_SAMPLES):
            file.seek(start + (size - start - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()
