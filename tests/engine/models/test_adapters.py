"""LoRA adapters: checked, loaded by mlx-lm, part of the fingerprint."""

from __future__ import annotations

import json
import os
import pickle
import queue
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.adapters import write_adapter
from tests.models import STARTER_FOLDER, tiny_llama
from tqchat.cli import main
from tqchat.engine import backend, models
from tqchat.engine.commands import LoadModel
from tqchat.engine.events import Event, ModelFailed, ModelInfo, ModelReady
from tqchat.engine.models.adapters import AdapterUnusable
from tqchat.engine.worker import Engine
from tqchat.paths import Paths

on_cpu = pytest.mark.skipif(backend.prepare().name != "cpu", reason="weights stay as they are on a GPU")
TOKENS = list(range(5, 30))


def logits(model: Any) -> Any:
    import mlx.core as mx

    return model(mx.array([TOKENS])).astype(mx.float32)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "pirate", llama_folder)


@pytest.fixture
def own(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "pirate"))


def refusal(folder: Path, model_folder: Path) -> str:
    with pytest.raises(AdapterUnusable) as caught:
        models.load(str(model_folder), adapter=str(folder))
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_an_adapter_predicts_as_in_mlx_lm(tmp_path: Path, llama_folder: Path, kind: str) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_adapters, load_model

    folder = write_adapter(tmp_path / kind, llama_folder, kind=kind)
    reference, _ = load_model(llama_folder)
    reference.set_dtype(mx.float32)
    load_adapters(reference, str(folder)).eval()
    loaded = models.load(str(llama_folder), adapter=str(folder))
    plain = models.load(str(llama_folder))
    expected = logits(reference)
    assert float(mx.abs(logits(loaded.model) - expected).max()) < 2e-2 * float(mx.abs(expected).max())
    assert float(mx.abs(logits(plain.model) - expected).max()) > 0.1 * float(mx.abs(expected).max())


def test_an_adapters_dropout_is_off(adapter: Path, llama_folder: Path) -> None:
    import mlx.core as mx

    loaded = models.load(str(llama_folder), adapter=str(adapter))
    assert not any(module.training for _, module in loaded.model.named_modules())
    assert mx.array_equal(logits(loaded.model), logits(loaded.model))


@on_cpu
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_on_a_cpu_adapter_and_quantised_model_compute_in_float32(tmp_path: Path, kind: str) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_adapters, load_model

    folder = tiny_llama(tmp_path / "base")
    model, config = load_model(folder)
    nn.quantize(model, group_size=64, bits=8)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config["quantization"] = {"group_size": 64, "bits": 8}
    (folder / "config.json").write_text(json.dumps(config))
    adapter = write_adapter(tmp_path / "adapter", folder, kind=kind)
    weights = dict(mx.load(str(adapter / "adapters.safetensors")))
    mx.save_safetensors(
        str(adapter / "adapters.safetensors"),
        {name: value.astype(mx.bfloat16) for name, value in weights.items()},
    )
    loaded = models.load(str(folder), adapter=str(adapter))
    parameters = tree_flatten(loaded.model.parameters())
    assert {array.dtype for _, array in parameters} == {mx.float32}
    assert not [name for name, _ in parameters if "scales" in name]
    assert loaded.info.weight_bytes == sum(array.nbytes for _, array in parameters)
    reference, _ = load_model(folder)
    load_adapters(reference, str(adapter)).eval()
    reference.set_dtype(mx.float32)
    expected = logits(reference)
    assert float(mx.abs(logits(loaded.model) - expected).max()) < 2e-2 * float(mx.abs(expected).max())
    assert loaded.cache_dtype == mx.float16


def test_the_fingerprint_and_the_model_info_name_the_adapter(
    adapter: Path, tmp_path: Path, llama_folder: Path
) -> None:
    plain = models.load(str(llama_folder)).info
    with_one = models.load(str(llama_folder), adapter=str(adapter)).info
    same = models.load(str(llama_folder), adapter=str(shutil.copytree(adapter, tmp_path / "copy"))).info
    other = models.load(
        str(llama_folder), adapter=str(write_adapter(tmp_path / "other", llama_folder, seed=2))
    ).info
    assert (plain.adapter, with_one.adapter) == (None, "pirate")
    assert with_one.label == f"{plain.name} + pirate"
    assert same.fingerprint == with_one.fingerprint
    assert len({plain.fingerprint, with_one.fingerprint, other.fingerprint}) == 3
    scaled = Path(shutil.copytree(adapter, tmp_path / "scaled"))
    change(
        scaled,
        lora_parameters={
            "rank": 4,
            "scale": 5.0,
            "dropout": 0.0,
            "keys": ["self_attn.q_proj", "self_attn.v_proj"],
        },
    )
    assert models.load(str(llama_folder), adapter=str(scaled)).info.fingerprint != with_one.fingerprint


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def parameters(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder, lora_parameters={"rank": 4, "scale": 1.0, "dropout": 0.0} | values)


def evil(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(folder / "ran"),)

    (folder / "adapters.safetensors").rename(folder / "adapters.npz")
    (folder / "adapters.npz").write_bytes(pickle.dumps(Evil()))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no configuration": (lambda f: (f / "adapter_config.json").unlink(), "it has no adapter_config.json"),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "no valid JSON"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "no JSON table"),
    "no weights": (lambda f: (f / "adapters.safetensors").unlink(), "it has no adapters.safetensors"),
    "pickle": (evil, "a format that can run code, which tqchat never opens"),
    "PEFT": (
        lambda f: (f / "adapters.safetensors").rename(f / "adapter_model.safetensors"),
        "an adapter of PEFT",
    ),
    "PEFT's configuration": (lambda f: change(f, peft_type="LORA"), "an adapter of PEFT"),
    "cut": (lambda f: (f / "adapters.safetensors").write_bytes(b"abc"), "cut short"),
    "empty": (lambda f: (f / "adapters.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}"), "no weights"),
    "kind": (lambda f: change(f, fine_tune_type="odd"), "fine_tune_type is odd, but it must be lora"),
    "layers": (lambda f: change(f, num_layers=1e9), "num_layers is 1000000000.0"),
    "no parameters": (lambda f: change(f, lora_parameters=None), "lora_parameters is None"),
    "rank": (parameters(rank=10**9), "rank is 1000000000"),
    "another rank": (parameters(rank=8), "do not have the rank 8"),
    "scale": (parameters(scale="x"), "scale is x"),
    "infinite scale": (parameters(scale=float("inf")), "scale is inf"),
    "huge scale": (parameters(scale=10**400), "scale is 1000"),
    "dropout": (parameters(dropout=2), "dropout is 2"),
    "keys": (parameters(keys=5), "keys is 5"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_adapter_is_one_sentence(own: Path, llama_folder: Path, kind: str) -> None:
    spoil, words = BROKEN[kind]
    spoil(own)
    assert words in refusal(own, llama_folder)
    assert not (own / "ran").exists()


@pytest.mark.parametrize("name", ["adapters.safetensors", "adapter_config.json"])
def test_a_pipe_in_place_of_an_adapters_file_is_not_opened(own: Path, llama_folder: Path, name: str) -> None:
    (own / name).unlink()
    os.mkfifo(own / name)
    assert "no regular file" in refusal(own, llama_folder)


def test_an_adapter_of_another_model_names_both(adapter: Path, tmp_path: Path) -> None:
    wider = tiny_llama(tmp_path / "wider", hidden_size=128)
    text = refusal(adapter, wider)
    assert "The adapter pirate does not fit wider, it was trained for org/base" in text
    assert "lora_a" in text


def test_a_missing_adapter_is_said_before_a_download() -> None:
    for place in ("nowhere", "~nosuchuser/x"):
        with pytest.raises(AdapterUnusable, match="There is no adapter folder"):
            models.load("org/not-downloaded", adapter=place)


# Where it is asked for.


def test_the_engine_adds_it_to_the_first_model_only(
    adapter: Path, tmp_path: Path, llama_folder: Path, paths: Paths
) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def ready() -> ModelInfo:
        while not isinstance(event := events.get(timeout=60), ModelReady):
            assert not isinstance(event, ModelFailed), event
        return event.info

    engine = Engine(events.put, paths=paths, adapter=str(adapter))
    engine.start()
    try:
        for folder, name in ((llama_folder, "pirate"), (STARTER_FOLDER, None), (llama_folder, "pirate")):
            engine.submit(LoadModel(str(folder)))
            assert ready().adapter == name
    finally:
        engine.shutdown(60)


def test_an_adapter_that_does_not_fit_fails_in_the_app_as_a_sentence(adapter: Path, paths: Paths) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine = Engine(events.put, paths=paths, adapter=str(adapter))
    engine.start()
    try:
        engine.submit(LoadModel(str(STARTER_FOLDER)))
        while not isinstance(event := events.get(timeout=60), ModelFailed):
            assert not isinstance(event, ModelReady)
        assert "The adapter pirate does not fit starter" in event.message
    finally:
        engine.shutdown(60)


def test_run_takes_it_from_the_option_or_the_settings(
    adapter: Path, llama_folder: Path, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["run", "hello", "--model", str(llama_folder), "--temperature", "0", "--max-tokens", "8"]

    def reply(*arguments: str) -> str:
        assert main([*common, *arguments]) == 0
        return capsys.readouterr().out

    plain = reply()
    adapted = reply("--adapter", str(adapter))
    assert adapted != plain
    paths.config_file.write_text(f"adapter = '{adapter}'", "utf-8")
    assert reply() == adapted
    assert reply("--adapter", "off") == plain
    assert main([*common, "--json", "--adapter", str(adapter)]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == f"{llama_folder.name} + pirate"
    assert main([*common, "--adapter", "nowhere"]) == 2
    assert "There is no adapter folder 'nowhere'" in capsys.readouterr().err


def test_doctor_lists_it_and_says_what_is_wrong_with_it(
    own: Path, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    paths.config_file.write_text(f"adapter = '{own}'", "utf-8")
    assert main(["doctor"]) == 0
    assert f"{own} (trained for org/base)" in capsys.readouterr().out
    (own / "adapters.safetensors").unlink()
    assert main(["doctor"]) == 1
    assert "it has no adapters.safetensors" in capsys.readouterr().out
