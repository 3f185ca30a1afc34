"""What a save writes, and what trims, branches and damage leave of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.store.vault.test_vault import ID, PRINT, filled, flip, load, segments
from tqchat.engine import backend
from tqchat.store.vault import Restored, Vault, VaultError, Written
from tqchat.store.vault.manifest import MANIFEST, Pieces, cut, read_manifest

backend.prepare()

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel

SCHEMES = ["fp16", "affine8", "affine4", "turbo0v4", "turbo4", "turbo2"]


@pytest.fixture(scope="module")
def model(llama_folder: Path) -> LoadedModel:
    from tqchat.engine import models

    return models.load(str(llama_folder))


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "caches")


def grow(model: LoadedModel, cache: list[Any], count: int, seed: int = 7) -> list[int]:
    """Let the model read tokens; the last ones one by one, as a reply does."""
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


class Talk:
    """A live cache that is saved again and again, as a session does."""

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
        self.pieces = cut(self.pieces, keep)

    def save(self, **changes: Any) -> Written:
        written = self.vault.save(
            ID,
            self.cache,
            self.tokens,
            fingerprint=PRINT,
            scheme=self.scheme,
            pieces=self.pieces,
            **changes,
        )
        self.pieces = written.pieces
        return written

    def load(self, wanted: list[int] | None = None) -> Restored:
        found = self.vault.load(
            ID, fingerprint=PRINT, scheme=self.scheme, wanted=self.tokens if wanted is None else wanted
        )
        assert isinstance(found, Restored), found
        return found


def assert_same(mine: list[Any], theirs: list[Any]) -> None:
    """Bit for bit, descriptions included."""
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
def test_a_cache_saved_in_parts_comes_back_whole(vault: Vault, model: LoadedModel, scheme: str) -> None:
    talk = Talk(vault, model, scheme, 100)
    talk.save()
    for count in (90, 1, 200, 64, 40):
        talk.grow(count)
        talk.save()
        found = talk.load()
        assert found.tokens == talk.tokens
        assert_same(found.cache, talk.cache)
        assert found.pieces == talk.pieces
    assert len(talk.pieces) >= 2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_save_writes_what_is_new(vault: Vault, model: LoadedModel, scheme: str) -> None:
    from tqchat import kv

    talk = Talk(vault, model, scheme, 2000)
    whole = talk.save().bytes_written
    assert whole >= kv.memory_report(talk.cache).bytes
    # Beyond the new tokens: at most the raw tail, less than a segment that waits, and the headers.
    per_token = 2 * 2 * 2 * 64 * 2
    bounded = (128 + 16 + 4 + 64) * per_token + 12_000
    for count in (20, 20, 300):
        before = kv.memory_report(talk.cache).bytes
        talk.grow(count)
        written = talk.save()
        new = kv.memory_report(talk.cache).bytes - before
        assert written.bytes_written <= new + bounded
        assert written.bytes == vault.size(ID)
    # Nothing new, nothing but the tail again.
    assert talk.save().bytes_written <= bounded


@pytest.mark.parametrize("scheme", SCHEMES)
def test_on_disk_it_takes_no_more_than_in_memory(vault: Vault, model: LoadedModel, scheme: str) -> None:
    from tqchat import kv

    talk = Talk(vault, model, scheme, 3000)
    talk.save()
    talk.grow(500)
    talk.save()
    live = kv.memory_report(talk.cache).bytes + 4 * len(talk.tokens)
    assert vault.size(ID) <= live * 1.01 + 20_000


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_trim_keeps_the_segments_before_it(vault: Vault, model: LoadedModel, scheme: str) -> None:
    talk = Talk(vault, model, scheme, 700)
    talk.save()
    talk.grow(300)
    talk.save()
    first = segments(vault)[0]
    for keep in (800, 560, 400, 70, 20, 3):
        talk.rewind(keep)
        talk.grow(200, seed=keep)
        written = talk.save()
        found = talk.load()
        assert found.tokens == talk.tokens
        assert_same(found.cache, talk.cache)
        if keep >= 400:
            assert first.exists()
            assert written.bytes_written < vault.size(ID)


def test_both_branches_come_back_and_share_what_they_share(vault: Vault, model: LoadedModel) -> None:
    talk = Talk(vault, model, "turbo0v4", 700)
    talk.save()
    talk.grow(300)
    talk.save()
    other, size = list(talk.tokens), vault.size(ID)
    talk.rewind(650)
    talk.grow(250, seed=11)
    talk.save()
    mine = list(talk.tokens)
    assert vault.size(ID) < size * 1.9
    assert talk.load(mine).tokens == mine
    back = talk.load(other)
    assert back.tokens == other
    # The conversation goes on in the other branch; the first is then the other one.
    talk.tokens, talk.cache, talk.pieces = other, back.cache, back.pieces
    talk.grow(100)
    talk.save()
    assert talk.load().tokens == talk.tokens
    assert talk.load(mine).tokens == mine


def test_old_branches_do_not_pile_up(vault: Vault, model: LoadedModel) -> None:
    talk = Talk(vault, model, "turbo0v4", 400)
    talk.save()
    for seed in range(8):
        talk.rewind(380)
        talk.grow(250, seed=seed + 5)
        talk.save()
    assert len(list((vault.folder / ID).glob("branch-*"))) <= 4
    manifests = (vault.folder / ID).glob("*.json")
    files = {name for path in manifests for name in read_manifest(path).files}
    assert {path.name for path in (vault.folder / ID).glob("*.safetensors")} == files


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_comes_before_the_damage_is_used(vault: Vault, model: LoadedModel, scheme: str) -> None:
    talk = Talk(vault, model, scheme, 400)
    talk.save()
    for _ in range(3):
        talk.grow(200)
        talk.save()
    pieces = read_manifest(vault.folder / ID / MANIFEST).pieces
    for index in range(len(pieces), 0, -1):
        flip(segments(vault)[index], -1)
        found = talk.load()
        keep = pieces[index - 1].used
        assert found.tokens == talk.tokens[:keep]
        if keep < len(talk.tokens):
            assert found.damage is not None
            assert f"from token {keep + 1:,} on" in found.damage
        else:  # everything was settled, so the rest held nothing
            assert found.damage is None
        expected = Talk(vault, model, scheme, 400)
        for _ in range(3):
            expected.grow(200)
        expected.rewind(keep)
        assert_same(found.cache, expected.cache)
    # It goes on from there, and what is broken is written anew.
    talk.tokens, talk.cache, talk.pieces = found.tokens, found.cache, found.pieces
    talk.grow(200)
    talk.save()
    again = talk.load()
    assert again.damage is None
    assert_same(again.cache, talk.cache)


def test_an_interrupted_save_leaves_the_one_before_and_goes_on_later(
    vault: Vault, model: LoadedModel
) -> None:
    talk = Talk(vault, model, "fp16", 300)
    talk.save()
    saved = list(talk.tokens)
    talk.grow(3000)
    # The first question is asked before anything is written; each try gets a little further.
    for patience in range(0, 40, 4):
        asked = iter(range(10_000))
        written = talk.save(interrupted=lambda asked=asked, patience=patience: next(asked) >= patience)
        assert not written.complete
        assert talk.load().tokens == saved
        assert not list((vault.folder / ID).glob("new-*"))
        if len(written.pieces) > 2:
            break
    resumed = talk.save()
    assert resumed.complete
    assert resumed.bytes_written < vault.size(ID) * 0.7
    assert talk.load().tokens == talk.tokens
    assert_same(talk.load().cache, talk.cache)


def test_segments_that_another_process_removed_are_written_again(vault: Vault, model: LoadedModel) -> None:
    talk = Talk(vault, model, "turbo0v4", 400)
    talk.save()
    vault.forget(ID)
    talk.grow(50)
    talk.save()
    assert_same(talk.load().cache, talk.cache)


def test_a_sentence_says_that_the_budget_is_too_small(tmp_path: Path, model: LoadedModel) -> None:
    vault = Vault(tmp_path / "small", budget=0.0001)
    with pytest.raises(VaultError, match="GiB allowed"):
        Talk(vault, model, "fp16", 600).save()
    assert load(vault) is None
