"""Loads saved caches after damaging, exchanging or forging their files and manifests."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import json
import os
import random
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.models import LoadedModel
from tqchat.lab.endure import continuation, require
from tqchat.store.vault import Refused, Restored, Vault
from tqchat.store.vault.manifest import MANIFEST, digest

CONVERSATION_ID = "talk"
FINGERPRINT = "fingerprint"
MAX_MEMORY_RATIO, MEMORY_SLACK_BYTES = 4, 1 << 20
MEMORY_RETRIES = 3
"""Memory limit of a load: this multiple of its files' size, plus a constant."""

Mutation = Callable[[random.Random, Path, Path], Any]
"""Damages files in the conversation's folder (second argument); the third is another conversation's."""


@dataclass
class Mutations:
    """Loads by outcome: refused with a reason, used up to the damage, manifest absent.

    ``worst`` is the largest memory use of a load, relative to the size of its files.
    """

    mutations: int = 0
    refused: int = 0
    used: int = 0
    absent: int = 0
    worst: float = 0.0


class SavedConversation:
    """A conversation with several turns, a branch and checkpoints, saved several times."""

    def __init__(
        self,
        vault: Vault,
        model: LoadedModel,
        scheme: str,
        conversation: str = CONVERSATION_ID,
        first: int = 3,
    ) -> None:
        self.vault, self.model, self.scheme, self.conversation = vault, model, scheme, conversation
        self.held = PromptCache(model, scheme)
        self._read([first + n % 900 for n in range(260)])
        for seed in (7, 11):
            self._read([3 + n * seed % 900 for n in range(180)])
        # A branch beside the last turn, from the nearest position that the caches can be rewound to.
        self.held.trim_to(
            self.held.retained_tokens(self.held.checkpoints[-1].tokens if self.held.checkpoints else 440)
        )
        self._read([3 + n * 13 % 900 for n in range(190)])
        self.tokens = list(self.held.tokens)

    def _read(self, tokens: Sequence[int]) -> None:
        self.held.prefill(tokens[:-3])
        self.held.take_checkpoint()
        for token in tokens[-3:]:
            self.held.prefill([token])
        held = self.held
        held.pieces = self.vault.save(
            self.conversation,
            held.cache,
            held.tokens,
            fingerprint=FINGERPRINT,
            scheme=held.scheme,
            pieces=held.pieces,
            checkpoints=held.checkpoints,
        ).pieces

    def load(self, vault: Vault, wanted: Sequence[int] = ()) -> Restored | Refused | None:
        """Load the conversation from a vault."""
        return vault.load(
            CONVERSATION_ID, fingerprint=FINGERPRINT, scheme=self.scheme, transcript=wanted or self.tokens
        )


def endure(
    model: LoadedModel,
    schemes: Sequence[str],
    mutations: int,
    folder: Path,
    seed: str = "damage",
    tell: Callable[[int], None] = lambda mutation: None,
) -> Mutations:
    """Damage saved caches in random ways and load each.

    A load must return the saved cache or a prefix of it, bit for bit, or refuse; it must not raise or exceed
    the memory limit.

    Raises:
        CheckFailed: at the first failed check; the damaged files stay in ``folder``.
    """
    found = Mutations()
    for scheme in schemes:
        _endure(model, scheme, mutations // len(schemes), folder / scheme, f"{seed} {scheme}", found, tell)
    return found


def _endure(
    model: LoadedModel,
    scheme: str,
    mutations: int,
    folder: Path,
    seed: str,
    found: Mutations,
    tell: Callable[[int], None],
) -> None:
    rng = random.Random(seed)
    good, other = Vault(folder / "good"), Vault(folder / "other")
    saved = SavedConversation(good, model, scheme)
    SavedConversation(other, model, scheme, "other", first=5)
    known: dict[int, str] = {}
    vault = Vault(folder / "mutated")
    for _ in range(mutations):
        shutil.rmtree(vault.folder, ignore_errors=True)
        shutil.copytree(good.folder, vault.folder)
        kind = rng.choice(KINDS)
        kind(rng, vault.folder / CONVERSATION_ID, other.folder / "other")
        where = f"{kind.__name__.strip('_')} in {vault.folder}"
        size = sum(path.stat().st_size for path in vault.folder.rglob("*"))
        try:
            back, taken = _load_measured(lambda: saved.load(vault))
            for _ in range(MEMORY_RETRIES):
                if taken <= MAX_MEMORY_RATIO * size + MEMORY_SLACK_BYTES:
                    break
                # A busy machine frees temporaries later; a load that needs the memory takes it every time.
                taken = min(taken, _load_measured(lambda: saved.load(vault))[1])
        except Exception as error:
            require(False, f"Loading raised {type(error).__name__} after {where}: {error}")
            raise
        require(
            taken <= MAX_MEMORY_RATIO * size + MEMORY_SLACK_BYTES,
            f"Loading {size:,} bytes took {taken:,} after {where}",
        )
        found.worst = max(found.worst, taken / (size + MEMORY_SLACK_BYTES))
        if isinstance(back, Restored):
            # A forged manifest with a valid checksum can restore any content; it must only do no harm.
            if kind is not _forged:
                _require_prefix_of_saved(saved, good, back, known, where)
            found.used += 1
        elif back is None:
            require(
                not (vault.folder / CONVERSATION_ID / MANIFEST).exists(),
                f"A cache was overlooked after {where}",
            )
            found.absent += 1
        else:
            require(back.reason and "\n" not in back.reason, f"No reason was given after {where}")
            found.refused += 1
        found.mutations += 1
        tell(found.mutations)


def _require_prefix_of_saved(
    saved: SavedConversation, good: Vault, back: Restored, known: dict[int, str], where: str
) -> None:
    """Require that a cache is a prefix of what was saved on either branch, bit for bit."""
    count = len(back.tokens)
    whole = saved.load(good)
    if back.tokens != saved.tokens[:count]:
        whole = saved.load(good, back.tokens)
    assert isinstance(whole, Restored)
    require(back.tokens == whole.tokens[:count], f"Other tokens were restored after {where}")
    require((back.damage is None) == (count == len(whole.tokens)), f"Damage was not reported after {where}")
    key = hash(tuple(back.tokens))
    if key not in known:
        held = PromptCache(saved.model, saved.scheme)
        held.replace_with(whole)
        held.trim_to(count)
        require(len(held.tokens) == count, f"A cache ends at a position where none can end after {where}")
        known[key] = continuation.digest_of(saved.model, held.cache, back.tokens, saved.scheme)
    told = continuation.digest_of(saved.model, back.cache, back.tokens, saved.scheme)
    require(told == known[key], f"A wrong cache was accepted after {where}")


def _any(rng: random.Random, folder: Path) -> Path:
    return rng.choice(sorted(folder.iterdir()))


def _segment(rng: random.Random, folder: Path) -> Path:
    return rng.choice(sorted(folder.glob("*.safetensors")))


def _flip(rng: random.Random, folder: Path, other: Path) -> None:
    path = _any(rng, folder)
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 30))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _flip_header(rng: random.Random, folder: Path, other: Path) -> None:
    path = _segment(rng, folder)
    content = bytearray(path.read_bytes())
    content[rng.randrange(min(300, len(content)))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _cut(rng: random.Random, folder: Path, other: Path) -> None:
    path = _any(rng, folder)
    os.truncate(path, rng.choice((0, 1, 7, 8, 9, rng.randrange(path.stat().st_size))))


def _grow(rng: random.Random, folder: Path, other: Path) -> None:
    path = _any(rng, folder)
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.choice((1, 64, 5000))))


def _zeros(rng: random.Random, folder: Path, other: Path) -> None:
    path = _any(rng, folder)
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    end = min(start + rng.choice((1, 4096, len(content))), len(content))
    content[start:end] = bytes(end - start)
    path.write_bytes(content)


def _swap(rng: random.Random, folder: Path, other: Path) -> None:
    one, two = rng.sample(sorted(folder.glob("*.safetensors")), 2)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def _foreign(rng: random.Random, folder: Path, other: Path) -> None:
    shutil.copy(_any(rng, other), _any(rng, folder))


def _foreign_manifest(rng: random.Random, folder: Path, other: Path) -> None:
    shutil.copy(other / MANIFEST, folder / MANIFEST)


def _all_foreign(rng: random.Random, folder: Path, other: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def _remove(rng: random.Random, folder: Path, other: Path) -> None:
    _any(rng, folder).unlink()


def _random(rng: random.Random, folder: Path, other: Path) -> None:
    _any(rng, folder).write_bytes(rng.randbytes(rng.randrange(3000)))


def _folder(rng: random.Random, folder: Path, other: Path) -> None:
    path = _any(rng, folder)
    path.unlink()
    path.mkdir()


def _huge(rng: random.Random, folder: Path, other: Path) -> None:
    """A header that declares more data than the file has, with a valid checksum."""
    path = _segment(rng, folder)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    if rng.random() < 0.3:
        content = struct.pack("<Q", rng.choice((1 << 63, 1 << 40, len(content)))) + content[8:]
    else:
        header = json.loads(content[8 : 8 + length])
        entry = header[rng.choice(sorted(header))]
        shapes: tuple[Any, ...] = (
            [1 << 40],
            [1 << 31, 1 << 31],
            [-1, -8],
            [2**70],
            ["9"],
            [],
            None,
            3,
            [1 << 20, 0],
        )
        entry["shape"] = rng.choice(shapes)
        if rng.random() < 0.5:
            entry["data_offsets"] = [0, rng.choice((1 << 50, 0, -1))]
        text = json.dumps(header).encode()[:length].ljust(length)
        content = content[:8] + text + content[8 + length :]
    path.write_bytes(content)
    sign(folder, path)


def _old_version(rng: random.Random, folder: Path, other: Path) -> None:
    rewrite(folder, **{rng.choice(("format", "codec", "mlx_lm")): rng.choice((0, 1, 2, 99, "0.1", None))})


def _wrong_model(rng: random.Random, folder: Path, other: Path) -> None:
    rewrite(folder, fingerprint="another")


def _forged(rng: random.Random, folder: Path, other: Path) -> None:
    """A manifest with one value replaced by an unlikely one, and a valid checksum."""
    told = json.loads((folder / MANIFEST).read_text())
    values: tuple[Any, ...] = (
        0,
        -1,
        1,
        1 << 40,
        1 << 70,
        1e308,
        "",
        "x" * 1000,
        None,
        True,
        [],
        {},
        [[]],
        "float64",
        "NaN",
    )
    holder, key = rng.choice([place for place in _places(told) if place[1] != "digest"])
    old = holder[key]
    if isinstance(old, str) and old.startswith("{") and rng.random() < 0.8:
        # Layer descriptions are JSON strings inside the JSON.
        inner = json.loads(old)
        place, name = rng.choice(list(_places(inner)))
        place[name] = rng.choice(values)
        holder[key] = json.dumps(inner)
    else:
        holder[key] = rng.choice(values)
    told.pop("digest", None)
    (folder / MANIFEST).write_text(json.dumps(told | {"digest": digest(told)}))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) pair in nested lists and objects."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += _places(value[key])
    return found


def sign(folder: Path, path: Path) -> None:
    """Update size and checksum of a file in every manifest."""
    import hashlib

    content = path.read_bytes()
    fresh = [path.name, len(content), hashlib.sha256(content).hexdigest()]
    for manifest in folder.glob("*.json"):
        told = json.loads(manifest.read_text())
        del told["digest"]
        parts = [*told["pieces"], *told["checkpoints"], told["rest"]]
        for part in parts:
            if part[0] == path.name:
                part[:3] = fresh
        manifest.write_text(json.dumps(told | {"digest": digest(told)}))


def rewrite(folder: Path, **changes: Any) -> None:
    """Change values of the manifest, with a valid checksum."""
    told = json.loads((folder / MANIFEST).read_text())
    del told["digest"]
    told |= changes
    (folder / MANIFEST).write_text(json.dumps(told | {"digest": digest(told)}))


KINDS: list[Mutation] = [
    _flip,
    _flip,
    _flip_header,
    _cut,
    _grow,
    _zeros,
    _swap,
    _foreign,
    _foreign_manifest,
    _all_foreign,
    _remove,
    _random,
    _folder,
    _huge,
    _huge,
    _old_version,
    _wrong_model,
    _forged,
    _forged,
    _forged,
]


def _load_measured(load: Callable[[], Any]) -> tuple[Any, int]:
    """Result of a load, and the peak growth of Python's and MLX's memory in bytes."""
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    tracemalloc.start()
    try:
        back = load()
        return back, tracemalloc.get_traced_memory()[1] + max(mx.get_peak_memory() - before, 0)
    finally:
        tracemalloc.stop()
