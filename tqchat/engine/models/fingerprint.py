"""What makes two models the same model, as far as a saved cache is concerned."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

WHOLE_FILE = 64 << 20
"""Weight files up to this size are hashed whole."""

_SAMPLES = 64
_SAMPLE_BYTES = 64 << 10
_MAX_HEADER = 256 << 20
_TEXT_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")


def fingerprint(folder: Path, *traits: str) -> str:
    """A digest of a model folder and of how it was loaded.

    Config, tokenizer and chat template go in whole. Of a weight file larger than ``WHOLE_FILE`` the header
    (every tensor's name, shape and place), the size and 64 blocks spread over the file go in: reading tens
    of gigabytes at every start to notice an edit of a few bytes is not worth a user's time.

    Args:
        traits: What else a cache depends on (compute dtype, cache dtype).
    """
    digest = hashlib.sha256()
    texts = sorted({path for pattern in _TEXT_PATTERNS for path in folder.glob(pattern) if path.is_file()})
    for path in texts:
        _add(digest, path.name, path.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        _add(digest, path.name, _weights_digest(path))
    for trait in traits:
        _add(digest, "trait", trait.encode())
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, content: bytes) -> None:
    # Lengths first: no two lists of parts may run together into the same bytes.
    for part in (name.encode(), content):
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)


def _weights_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(struct.pack("<Q", size))
    with path.open("rb") as file:
        if size <= WHOLE_FILE:
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.digest()
        prefix = file.read(8)
        length = min(struct.unpack("<Q", prefix)[0], _MAX_HEADER)
        digest.update(prefix)
        digest.update(file.read(length))
        start = 8 + length
        for index in range(_SAMPLES):
            file.seek(start + (size - start - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()
