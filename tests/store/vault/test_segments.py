"""Segments: incremental saves, trims, branches, damage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.store.vault.test_vault import FINGERPRINT, ID, filled, flip, load, segments
from tqchat.engine import backend
from tqchat.store.vault import Restored, SaveResult, Vault, VaultError
from tqchat.store.vault.manifest import MANIFEST, Pieces, read_manifest, trim_pieces

backend.prepare()

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel

SCHEMES = ["fp16", "affine8", "affine4", "turbo0v4", "turbo4", "turbo2"]


def grow(model: LoadedModel, cache: list[Any], count: int, seed: int = 7) -> list[int]:
    """Append tokens to a cache: a prefill, then three decode steps."""
    import mlx.core as mx

    tokens = [3 + (n * seed) % 900 for n in range(count)]
    if count > 3:
        model.model(mx.array([tokens[:-3]]), cache=cache)
    for token in tokens[-3:]:
        model.model(mx.array([[token]]), cache=cache)
    mx.eval([layer.state for layer in cache])
    return tokens


def trim(cache: list[Any], count: int) -> None:
    for layer in cache:
        layer.trim(count)


class SavedChat:
    """A live cache that is saved repeatedly, as a session does."""

    def __init__(self, vault: Vault, model: LoadedModel, scheme: str, count: int) -> None:
        self.vault, self.model, self.scheme = vault, model, scheme
        self.tokens = [3 + n % 900 for n in range(count)]
        self.cache = filled(model, self.tokens, scheme)
        self.pieces: Pieces = ()

    def grow(self, count: int, seed: int = 7) -> None:
        self.tokens += grow(self.model, self.cache, count, seed)

    def rewind(self, keep: int) -> None:
        trim(self.cache, len(self.tokens) - keep)
        del self.tokens[keep:]
        self.pieces = trim_pieces(self.pieces, keep)

    def save(self, **changes: Any) -> SaveResult:
        written = self.vault.save(
            ID,
            self.cache,
            self.tokens,
            fingerprint=FINGERPRINT,
            scheme=self.scheme,
            pieces=self.pieces,
            **changes,
        )
        self.pieces = written.pieces
        return written

    def load(self, transcript: list[int] | None = None) -> Restored:
        found = self.vault.load(
            ID,
            fingerprint=FINGERPRINT,
            scheme=self.scheme,
            transcript=self.tokens if transcript is None else transcript,
        )
        assert isinstance(found, Restored), found
        return found


def assert_same(mine: list[Any], theirs: list[Any]) -> None:
    """Assert bit-identical states, metadata included."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    for a, b in zip(mine, theirs, strict=True):
        left, right = (dict(tree_flatten(layer.state)) for layer in (a, b))
        assert left.keys() == right.keys()
        for name, array in left.items():
            if isinstance(array, mx.array):
                assert mx.array_equal(array, right[name], equal_nan=True), name
            else:
                assert array == right[name]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_incremental_saves_restore_the_whole_cache(vault: Vault, model: LoadedModel, scheme: str) -> None:
    chat = SavedChat(vault, model, scheme, 100)
    chat.save()
    for count in (90, 1, 200, 64, 40):
        chat.grow(count)
        chat.save()
        found = chat.load()
        assert found.tokens == chat.tokens
        assert_same(found.cache, chat.cache)
        assert found.pieces == chat.pieces
    assert len(chat.pieces) >= 2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_save_writes_only_new_tokens(vault: Vault, model: LoadedModel, scheme: str) -> None:
    from tqchat import kv

    chat = SavedChat(vault, model, scheme, 2000)
    whole = chat.save().bytes_written
    assert whole >= kv.memory_report(chat.cache).bytes
    # Besides the new tokens: at most the raw tail, less than one minimal segment, and the headers.
    per_token = 2 * 2 * 2 * 64 * 2
    bounded = (128 + 16 + 4 + 64) * per_token + 12_000
    for count in (20, 20, 300):
        before = kv.memory_report(chat.cache).bytes
        chat.grow(count)
        written = chat.save()
        new = kv.memory_report(chat.cache).bytes - before
        assert written.bytes_written <= new + bounded
        assert written.bytes == vault.size(ID)
    # Without new tokens, only the tail is written.
    assert chat.save().bytes_written <= bounded


@pytest.mark.parametrize("scheme", SCHEMES)
def test_size_on_disk_is_at_most_the_size_in_memory(vault: Vault, model: LoadedModel, scheme: str) -> None:
    from tqchat import kv

    chat = SavedChat(vault, model, scheme, 3000)
    chat.save()
    chat.grow(500)
    chat.save()
    live = kv.memory_report(chat.cache).bytes + 4 * len(chat.tokens)
    assert vault.size(ID) <= live * 1.01 + 20_000


@pytest.mark.parametrize("scheme", SCHEMES)
def test_segments_before_a_trim_are_reused(vault: Vault, model: LoadedModel, scheme: str) -> None:
    chat = SavedChat(vault, model, scheme, 700)
    chat.save()
    chat.grow(300)
    chat.save()
    first = segments(vault)[0]
    for keep in (800, 560, 400, 70, 20, 3):
        chat.rewind(keep)
        chat.grow(200, seed=keep)
        written = chat.save()
        found = chat.load()
        assert found.tokens == chat.tokens
        assert_same(found.cache, chat.cache)
        if keep >= 400:
            assert first.exists()
            assert written.bytes_written < vault.size(ID)


def test_branches_are_restored_and_share_segments(vault: Vault, model: LoadedModel) -> None:
    chat = SavedChat(vault, model, "turbo0v4", 700)
    chat.save()
    chat.grow(300)
    chat.save()
    other, size = list(chat.tokens), vault.size(ID)
    chat.rewind(650)
    chat.grow(250, seed=11)
    chat.save()
    mine = list(chat.tokens)
    assert vault.size(ID) < size * 1.9
    assert chat.load(mine).tokens == mine
    back = chat.load(other)
    assert back.tokens == other
    # Continue in the other branch; the first one is then kept as a branch.
    chat.tokens, chat.cache, chat.pieces = other, back.cache, back.pieces
    chat.grow(100)
    chat.save()
    assert chat.load().tokens == chat.tokens
    assert chat.load(mine).tokens == mine


def test_the_number_of_branches_is_limited(vault: Vault, model: LoadedModel) -> None:
    chat = SavedChat(vault, model, "turbo0v4", 400)
    chat.save()
    for seed in range(8):
        chat.rewind(380)
        chat.grow(250, seed=seed + 5)
        chat.save()
    assert len(list((vault.folder / ID).glob("branch-*"))) <= 4
    manifests = (vault.folder / ID).glob("*.json")
    files = {name for path in manifests for name in read_manifest(path).files}
    assert {path.name for path in (vault.folder / ID).glob("*.safetensors")} == files


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tokens_before_damage_are_restored(vault: Vault, model: LoadedModel, scheme: str) -> None:
    chat = SavedChat(vault, model, scheme, 400)
    chat.save()
    for _ in range(3):
        chat.grow(200)
        chat.save()
    pieces = read_manifest(vault.folder / ID / MANIFEST).pieces
    for index in range(len(pieces), 0, -1):
        flip(segments(vault)[index], -1)
        found = chat.load()
        keep = pieces[index - 1].used
        assert found.tokens == chat.tokens[:keep]
        if keep < len(chat.tokens):
            assert found.damage is not None
            assert f"from token {keep + 1:,} on" in found.damage
        else:  # all tokens were settled, so the rest file had none
            assert found.damage is None
        expected = SavedChat(vault, model, scheme, 400)
        for _ in range(3):
            expected.grow(200)
        expected.rewind(keep)
        assert_same(found.cache, expected.cache)
    # The chat continues from there, and damaged segments are rewritten.
    chat.tokens, chat.cache, chat.pieces = found.tokens, found.cache, found.pieces
    chat.grow(200)
    chat.save()
    again = chat.load()
    assert again.damage is None
    assert_same(again.cache, chat.cache)


def test_an_interrupted_save_keeps_the_previous_one_and_resumes(vault: Vault, model: LoadedModel) -> None:
    chat = SavedChat(vault, model, "fp16", 300)
    chat.save()
    saved = list(chat.tokens)
    chat.grow(3000)
    # ``interrupted`` is first called before anything is written; each try gets further.
    for allowed_calls in range(0, 40, 4):
        calls = iter(range(10_000))
        written = chat.save(
            interrupted=lambda calls=calls, allowed_calls=allowed_calls: next(calls) >= allowed_calls
        )
        assert not written.complete
        assert chat.load().tokens == saved
        assert not list((vault.folder / ID).glob("new-*"))
        if len(written.pieces) > 2:
            break
    resumed = chat.save()
    assert resumed.complete
    assert resumed.bytes_written < vault.size(ID) * 0.7
    assert chat.load().tokens == chat.tokens
    assert_same(chat.load().cache, chat.cache)


def test_segments_pruned_by_another_process_are_rewritten(vault: Vault, model: LoadedModel) -> None:
    chat = SavedChat(vault, model, "turbo0v4", 400)
    chat.save()
    vault.remove(ID)
    chat.grow(50)
    chat.save()
    assert_same(chat.load().cache, chat.cache)


def test_a_save_over_the_budget_is_refused(tmp_path: Path, model: LoadedModel) -> None:
    vault = Vault(tmp_path / "small", budget=0.0001)
    with pytest.raises(VaultError, match=r"cache budget of [0-9.]+ k?B"):
        SavedChat(vault, model, "fp16", 600).save()
    assert load(vault) is None


@pytest.mark.parametrize("others", [0, 3], ids=["alone", "with others"])
def test_arrays_without_content_are_read(tmp_path: Path, others: int) -> None:
    """Latent attention has values without width, and the file of the remaining arrays may lack tokens."""
    import mlx.core as mx

    from tqchat.store.vault import segments as files

    shapes = {"0.raw.0": (1, 8, 0, 128), "0.raw.1": (1, 1, 300, 0), "tokens": (others,)}
    stored = files.write(tmp_path, {name: mx.zeros(shape) for name, shape in shapes.items()})
    assert {name: array.shape for name, array in files.read(tmp_path, stored).items()} == shapes
