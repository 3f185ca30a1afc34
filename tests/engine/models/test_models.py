from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine import tiny as tiny_models
from tests.engine.scripted_model import tokenizer_files
from tests.engine.talk import TALE, assistant, greedy, send, user
from tests.models import STARTER_FOLDER, tiny_llama
from tqchat.engine import backend, models
from tqchat.engine.commands import STARTER, Sampling, resolve_sampling
from tqchat.engine.events import Done, Failed, SchemeChanged
from tqchat.engine.hub.resolve import ModelNotFound, resolve
from tqchat.engine.models import LoadedModel, loading
from tqchat.engine.models.fingerprint import fingerprint
from tqchat.engine.models.sampling_defaults import sampling_defaults
from tqchat.engine.session import Session
from tqchat.errors import TqchatError
from tqchat.paths import bundled
from tqchat.store.vault import Vault

on_cpu = pytest.mark.skipif(backend.prepare().name != "cpu", reason="weights stay as they are on a GPU")


def logits(model: Any, tokens: list[int]) -> Any:
    import mlx.core as mx

    return model(mx.array([tokens])).astype(mx.float32)


@on_cpu
def test_the_starter_computes_in_float32_and_caches_in_bfloat16(starter: LoadedModel) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    assert {array.dtype for _, array in tree_flatten(starter.model.parameters())} == {mx.float32}
    assert starter.cache_dtype == mx.bfloat16
    assert starter.info.weight_bytes == sum(a.nbytes for _, a in tree_flatten(starter.model.parameters()))
    assert starter.info.layers == 8
    assert starter.info.architecture == "llama"
    assert (starter.info.name, starter.info.ref) == ("starter", str(STARTER_FOLDER))
    assert starter.info.device.startswith("cpu")


@on_cpu
def test_dequantised_weights_predict_what_the_quantised_ones_do(starter: LoadedModel) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    tokens = starter.tokenizer.encode("Once upon a time there was a dog.")
    quantised, _ = load_model(STARTER_FOLDER)
    quantised.set_dtype(mx.float32)  # the scales, and so what is computed with
    a, b = logits(starter.model, tokens), logits(quantised, tokens)
    assert float(mx.abs(a - b).max()) < 1e-3


@on_cpu
def test_experts_are_dequantised_too(tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    folder = tiny_models.write(tmp_path / "experts", tiny_models.EXPERTS, quantised=True)
    model = models.load(str(folder))
    quantised, _ = load_model(folder)
    assert not [name for name, _ in model.model.named_modules() if "scales" in name]
    tokens = list(range(5, 25))
    a, b = logits(model.model, tokens), logits(quantised, tokens)
    assert float(mx.abs(a - b).mean()) < 0.05 * float(mx.abs(b).mean()) + 1e-3


@on_cpu
def test_weights_that_do_not_fit_as_float32_stay_quantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    folder = tiny_models.write(tmp_path / "experts", tiny_models.EXPERTS, quantised=True)
    monkeypatch.setattr(backend, "available_memory", lambda: 1000)
    model = models.load(str(folder))
    assert mx.uint32 in {array.dtype for _, array in tree_flatten(model.model.parameters())}
    assert model.cache_dtype is None


@on_cpu
def test_experts_that_a_cpu_cannot_compute_are_refused_when_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "fits_as_float32", lambda model: False)
    folder = tiny_models.write(tmp_path / "dense", tiny_models.EXPERTS)
    with pytest.raises(TqchatError, match=r"^dense is a mixture of experts in 16 bits, .* quantised version"):
        models.load(str(folder))
    folder = tiny_models.write(tmp_path / "quantised", tiny_models.EXPERTS, quantised=True)
    assert send(Session(models.load(str(folder))), [user("Hello")]).counts.generated


def test_float16_models_keep_float16_caches(tiny: LoadedModel) -> None:
    import mlx.core as mx

    if tiny.on_cpu:
        assert tiny.cache_dtype == mx.float16


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "no valid JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "no JSON table"),
    "no model type": (lambda f: (f / "config.json").write_text("{}"), "model_type"),
    "unknown architecture": (lambda f: change(f, model_type="hal9000"), "hal9000"),
    "own code": (lambda f: change(f, model_file="model.py"), "Python code"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "only GGUF": (lambda f: (f / "model.safetensors").rename(f / "model.gguf"), "GGUF"),
    "cut weights": (lambda f: cut(f / "model.safetensors", -1000), "cut short"),
    "weights cut in the header": (lambda f: cut(f / "model.safetensors", 20), "cut short"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "cut short"),
    "no weights at all": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x02" + b"\0" * 7 + b"{]"),
        "damaged",
    ),
    "a shard missing": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}})
        ),
        "1 of 2 weight files",
    ),
    "other shapes": (lambda f: change(f, hidden_size=128), "shapes"),
    "other layers": (lambda f: change(f, num_hidden_layers=5), "missing"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    "half of a tokenizer": (lambda f: (f / "tokenizer.json").rename(f / "vocab.json"), "merges.txt"),
    "empty tokenizer": (
        lambda f: (
            (f / "tokenizer.json").unlink(),
            (f / "tokenizer.model").touch(),
            (f / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}'),
        ),
        "makes no tokens of a word; download or copy the model again, or choose another version",
    ),
    "quantisation of another type": (lambda f: change(f, quantization=[4]), "choose another version of it"),
    "a window of no model": (lambda f: change(f, sliding_window=10**20), "sliding_window is 1000000"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer"),
    "tokenizer with own code": (
        lambda f: (f / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "Odd", "auto_map": {"AutoTokenizer": ["odd.OddTokenizer", None]}})
        ),
        "Python code",
    ),
}


def test_tokens_beyond_the_weights_are_not_read(tmp_path: Path) -> None:
    config = tiny_models.COMMON | {"model_type": "llama", "num_hidden_layers": 2, "rope_theta": 10000.0}
    folder = tiny_models.write(tmp_path / "model", config)
    size = tokenizer_files(folder, "{{ messages[0].content }}", special=("<|beyond|>",))
    session = Session(models.load(str(folder)))  # other models have more tokens than they use
    assert isinstance(list(session.send([user("Hello <|beyond|>")], greedy(1)))[-1], Done)
    session.model.tokenizer.chat_template = "<|beyond|>{{ messages[0].content }}"
    said = list(session.send([user("Hello")]))[-1]
    assert (
        isinstance(said, Failed) and f"writes token {size - 1:,} and its weights know 12,288" in said.message
    )
    tokenizer_files(folder, "<|beyond|>{{ messages[0].content }}", special=("<|beyond|>",))
    with pytest.raises(TqchatError, match="do not belong together"):
        models.load(str(folder))


@pytest.mark.parametrize("name", ["[4bit] what? *{a}", "line\nbreak", "ünï 🦡 'q\" $HOME %s"])
def test_a_folder_of_any_name_is_loaded(llama_folder: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / name))
    assert models.load(str(folder)).info.name == name.replace("\n", " ")


@pytest.mark.parametrize("value", [None, "2048", 2048.0])
def test_values_that_only_transformers_refuses_do_not_matter(
    llama_folder: Path, tmp_path: Path, value: object
) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    change(folder, max_position_embeddings=value)
    loaded = models.load(str(folder))
    assert loaded.tokenizer.encode("hello")
    assert loaded.info.layers == 2


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (tiny_models.HYBRID, {"layer_types": ["mamba", "full_attention"]}),
        (tiny_models.RECURRENT, {"layer_types": ["mamba"]}),
        (tiny_models.EXPERTS, {"num_labels": "x"}),
    ],
    ids=["property of the configuration", "a property of another", "wrong type"],
)
def test_a_configuration_that_transformers_cannot_build_needs_no_other_tokenizer(
    tmp_path: Path, config: dict[str, Any], values: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_models.write(tmp_path / "model", config)
    expected = models.load(str(folder)).tokenizer
    change(folder, **values)
    found = loading._load_tokenizer(folder)
    assert found.encode("Hello <|im_end|>") == expected.encode("Hello <|im_end|>")
    assert found.eos_token_ids == expected.eos_token_ids
    assert capfd.readouterr() == ("", "")  # it would be printed over the screen


def test_a_model_with_a_cache_class_of_its_own_is_chatted_with(tmp_path: Path) -> None:
    loaded = models.load(str(tiny_models.write(tmp_path / "model", tiny_models.OWN_CACHE)))
    session = Session(loaded)
    told, asked, other = user(TALE), user("Who am I?"), user("Where was the dog?")
    first = send(session, [told])
    chat = [told, assistant(first.text)]
    answers = [send(session, [*chat, one]).text for one in (asked, other, asked)]
    assert answers[0] == answers[2] == send(Session(loaded), [*chat, asked]).text
    assert isinstance(list(session.set_scheme("turbo4"))[-1], SchemeChanged)
    assert send(session, [*chat, other]).text == answers[1]
    with pytest.raises(TqchatError, match=r"cannot be saved: it is read again after a restart\.$"):
        session.save(Vault(tmp_path / "vault"), "one")


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_folder_is_one_sentence(llama_folder: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    if kind == "tokenizer with own code":
        (folder / "odd.py").write_text("raise SystemExit('this must never run')")
    spoil, reason = BROKEN[kind]
    spoil(folder)
    with pytest.raises(TqchatError) as caught:
        models.load(str(folder))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "ref",
    [
        "./nowhere",
        "/nowhere/at/all",
        "~/nowhere",
        "nowhere",
        "a/b/c",
        "x/y z",
        "",
        "~nosuchuser/x",
        "a--b/c",
        "a/b..c",
        "x" * 300,
        "x" * 90 + "/y" * 10,
    ],
)
def test_an_unknown_name_is_one_sentence(ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "..")
    if ref == "":
        ref = str(tmp_path / "gone")
    with pytest.raises(ModelNotFound) as caught:
        resolve(ref)
    assert caught.value.exit_code == 2


def test_a_file_is_refused_as_a_model(llama_folder: Path) -> None:
    with pytest.raises(ModelNotFound, match="is a file"):
        resolve(str(llama_folder / "config.json"))


def test_the_bundled_model_needs_no_name() -> None:
    assert resolve(None) == resolve(STARTER) == bundled("starter")
    assert resolve("starter") == bundled("starter")  # its name in earlier versions


def test_the_starters_own_sampling_is_the_default(starter: LoadedModel) -> None:
    chosen = resolve_sampling(Sampling(), starter.info.sampling)
    assert (chosen.temperature, chosen.top_p, chosen.repetition_penalty) == (0.7, 0.9, 1.1)
    assert resolve_sampling(Sampling(top_p=0.5), starter.info.sampling).top_p == 0.5
    greedy = resolve_sampling(Sampling(temperature=0.0), starter.info.sampling)
    assert (greedy.top_p, greedy.repetition_penalty) == (None, None)
    penalised = resolve_sampling(Sampling(temperature=0.0, repetition_penalty=1.2), starter.info.sampling)
    assert penalised.repetition_penalty == 1.2


def test_without_a_generation_config_our_defaults_apply(llama_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    (folder / "generation_config.json").write_text("not JSON")
    defaults, _ = sampling_defaults(folder)
    assert (defaults.temperature, defaults.top_p, defaults.repetition_penalty) == (0.7, 0.95, None)


def test_the_fingerprint_changes_with_weights_template_and_traits_only(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a")
    print_ = fingerprint(folder, "x")
    assert fingerprint(folder, "x") == print_
    assert fingerprint(folder, "y") != print_
    assert fingerprint(tiny_llama(tmp_path / "b"), "x") == print_
    assert fingerprint(tiny_llama(tmp_path / "c", seed=1), "x") != print_
    (folder / "README.md").write_text("words")
    assert fingerprint(folder, "x") == print_
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert fingerprint(folder, "x") != print_


def test_a_large_weight_file_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tqchat.engine.models import fingerprint as module

    folder = tiny_llama(tmp_path / "a")
    monkeypatch.setattr(module, "FULL_HASH_MAX_BYTES", 1000)
    monkeypatch.setattr(module, "_SAMPLE_BYTES", 4096)
    before = fingerprint(folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint(folder) != before
