"""LoRA and DoRA adapters trained with mlx-lm: checked, then loaded by mlx-lm itself."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqchat.engine.hub import model_folder, safetensors_header
from tqchat.engine.models.fingerprint import weights_digest
from tqchat.errors import TqchatError
from tqchat.paths import expand_user
from tqchat.store.records import NO_ADAPTER
from tqchat.text import one_line

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapters.safetensors"
_MAX_RANK = 4_096
_MAX_LAYERS = 2_000
_PICKLES = ("*.npz", "*.bin", "*.pt", "*.pth")


class AdapterUnusable(TqchatError):
    """The adapter is damaged, of another kind, or made for another model."""

    exit_code = 2


@dataclass(frozen=True)
class Adapter:
    """A checked adapter folder.

    Attributes:
        base: The model that it was trained for, if it says so.
        digest: Of its configuration and weights.
        adds_layers: Whether it adds layers to the model; else it replaces the model's weights.
    """

    folder: Path
    base: str
    digest: str
    adds_layers: bool = True

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.folder.name


def find(place: str) -> Adapter:
    """Check an adapter folder. Reads no weights and needs no MLX.

    Raises:
        AdapterUnusable: if mlx-lm cannot load it.
    """
    folder = expand_user(place)
    try:
        found = folder.is_dir()
    except OSError:  # a name that is too long, or a folder that may not be read
        found = False
    if not found:
        raise AdapterUnusable(
            f"There is no adapter folder {place!r}; it holds {CONFIG_FILE} and {WEIGHTS_FILE}, as mlx-lm "
            "writes them."
        )
    folder = folder.resolve()
    config = _config(folder)
    header = _header(folder)
    _check_config(folder, config, header)
    base = config.get("model")
    digest = hashlib.sha256((folder / CONFIG_FILE).read_bytes() + weights_digest(folder / WEIGHTS_FILE))
    return Adapter(
        folder,
        one_line(base) if isinstance(base, str) else "",
        digest.hexdigest(),
        config.get("fine_tune_type") != "full",
    )


def chosen(choice: str | None, default: str | None) -> str | None:
    """The adapter folder to use: the choice, else the default; ``None`` for none."""
    wanted = default if choice is None else choice
    return None if wanted == NO_ADAPTER else wanted


def apply(model: Any, adapter: Adapter, name: str) -> Any:
    """Add an adapter to a loaded model, in place.

    Args:
        name: The model's name, for the sentence.

    Returns:
        The modules that it replaces: ``model.update_modules`` with them takes it away again.

    Raises:
        AdapterUnusable: if it does not fit the model, which is unchanged then.
    """
    import mlx.core as mx
    from mlx_lm.utils import load_adapters

    replaced = model.leaf_modules()
    try:
        load_adapters(model, str(adapter.folder))
        mx.eval(model.parameters())
    except Exception as error:
        model.update_modules(replaced)
        trained = f", it was trained for {adapter.base}" if adapter.base else ""
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        detail = one_line(next((line for line in lines if not line.endswith(":")), lines[0]))[:160]
        raise AdapterUnusable(
            f"The adapter {adapter.name} does not fit {name}{trained} ({detail.rstrip('.')})."
        ) from error
    model.eval()  # new layers come in training mode, with dropout
    return replaced


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        if not path.exists():
            raise AdapterUnusable(f"{folder} is no adapter folder: it has no {CONFIG_FILE}.")
        return model_folder.read_json(path)
    except model_folder.NotAModel as error:
        raise AdapterUnusable(str(error).replace("the model again", "the adapter again")) from error


def _header(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / WEIGHTS_FILE
    if not path.exists():
        if (folder / "adapter_model.safetensors").exists():
            raise _peft(folder)
        if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
            raise AdapterUnusable(
                f"{folder} holds its adapter in a format that can run code, which tqchat never "
                f"opens; save it as {WEIGHTS_FILE}."
            )
        raise AdapterUnusable(f"{folder} is no adapter folder: it has no {WEIGHTS_FILE}.")
    try:
        header = safetensors_header.read(path)
    except model_folder.NotAModel as error:
        raise AdapterUnusable(str(error)) from error
    if not header:
        raise AdapterUnusable(f"{path} holds no weights: train or copy the adapter again.")
    return header


def _check_config(folder: Path, config: dict[str, Any], header: dict[str, dict[str, Any]]) -> None:
    if "peft_type" in config:
        raise _peft(folder)
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        raise _wrong(folder, "fine_tune_type", kind, "lora, dora or full")
    if kind == "full":
        return
    layers = config.get("num_layers")
    if type(layers) is not int or not -1 <= layers <= _MAX_LAYERS:
        raise _wrong(folder, "num_layers", layers, f"a whole number from -1 (all) to {_MAX_LAYERS:,}")
    table = config.get("lora_parameters")
    if not isinstance(table, dict):
        raise _wrong(folder, "lora_parameters", table, "a table")
    rank, keys = table.get("rank"), table.get("keys")
    if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
        raise _wrong(folder, "rank", rank, f"a whole number from 1 to {_MAX_RANK:,}")
    for key in ("scale", "dropout"):
        value: Any = table.get(key)
        # Compared before it is converted: a very large integer does not fit a float.
        number = type(value) in (int, float) and abs(value) <= sys.float_info.max
        if not number or (key == "dropout" and not 0 <= value < 1):
            raise _wrong(folder, key, value, "a number from 0, below 1" if key == "dropout" else "a number")
    if keys is not None and not (isinstance(keys, list) and all(isinstance(one, str) for one in keys)):
        raise _wrong(folder, "keys", keys, "a list of names")
    # mlx-lm makes layers of this rank before it reads the weights.
    factors = [entry["shape"] for name, entry in header.items() if name.endswith(("lora_a", "lora_b"))]
    if not factors or not all(rank in shape for shape in factors):
        raise AdapterUnusable(
            f"The weights of {folder} do not have the rank {rank} that its {CONFIG_FILE} says: copy it again."
        )


def _peft(folder: Path) -> AdapterUnusable:
    return AdapterUnusable(
        f"{folder} holds an adapter of PEFT, whose names and layout mlx-lm does not read; merge it into its "
        "model with PEFT, then convert that."
    )


def _wrong(folder: Path, key: str, value: object, allowed: str) -> AdapterUnusable:
    shown = one_line(str(value)[:60])
    return AdapterUnusable(f"{folder / CONFIG_FILE} says {key} is {shown}, but it must be {allowed}.")
