"""Every reader of files, for mutated files: what each reads, and how the program uses it.

A reader may refuse a file with a TqchatError. Anything else that it raises is a failure.
"""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import contextlib
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tqchat.engine.models import LoadedModel
from tqchat.errors import TqchatError
from tqchat.files import open_regular
from tqchat.kv.scheme import AUTO, parse_scheme
from tqchat.lab.endure import imports, require
from tqchat.lab.endure.content import Format
from tqchat.paths import Paths, bundled
from tqchat.text import one_line, printable

_FINGERPRINT = "f" * 64
_MAX_BYTES = 1 << 30
"""Longer files are not read here; what reads them must refuse them by itself."""


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
        prepare: Writes intact files into an empty folder; returns those to mutate, with their formats.
        read: Reads the folder as the program does.
    """

    name: str
    prepare: Callable[[Path], dict[Path, Format]]
    read: Callable[[Path], object]


def _paths(folder: Path) -> Paths:
    paths = Paths(*(folder / name for name in ("config", "state", "data", "cache", "logs")))
    paths.ensure()
    return paths


# Settings, state, presets, themes, profiles


def _write_config(folder: Path) -> dict[Path, Format]:
    file = _paths(folder).config_file
    file.write_text(
        'theme = "mine"\nmodel = "a/b"\nscheme = "turbo4"\nmemory_budget = 1.5\nmodel_folders = ["~/x"]\n'
        'thinking = "low"\nmax_tokens = 100\ntemperature = 0.5\nseed = 3\nstep_down = true\n'
        '[keys]\nscheme = "ctrl+k"\nnew = "ctrl+e,alt+n"\n'
    )
    return {file: "toml"}


def _read_config(folder: Path) -> None:
    from tqchat import settings
    from tqchat.ui.actions.keys import validate_keys
    from tqchat.ui.actions.table import ACTIONS

    used, problems = settings.read_config(_paths(folder))
    _ = used.sampling, used.limits, used.reasoning
    validate_keys(ACTIONS, used.keys)
    _require_sentences(problems)


def _write_state(folder: Path) -> dict[Path, Format]:
    from tqchat.settings import State

    paths = _paths(folder)
    State("a" * 16, sidebar=False, settings={"theme": "mine", "seed": 1, "scheme": "turbo3"}).save(paths)
    return {paths.state_file: "toml"}


def _read_state(folder: Path) -> None:
    from tqchat.settings import Settings, State

    paths = _paths(folder)
    state, problem = State.read(paths)
    Settings().with_values(state.settings)
    _require_sentences([problem] if problem else [])
    before = _regular_content(paths.state_file)
    if State(conversation="new", gauge=False).save(paths, State()):
        found = State.load(paths)
        require((found.conversation, found.gauge) == ("new", False), "The state that was saved is not read.")
        _require_kept(paths.state_file, before)


def _write_presets(folder: Path) -> dict[Path, Format]:
    from tqchat.store.sampling import SamplingChoice
    from tqchat.ui.parts.presets import Preset, Presets

    file = _paths(folder).presets
    for name in ("mine", "other"):
        Presets(file).save(name, Preset(SamplingChoice(temperature=0.3, top_k=5, seed=1), "Be brief."))
    return {file: "toml"}


def _read_presets(folder: Path) -> None:
    from tqchat.store.sampling import SamplingChoice
    from tqchat.ui.parts.presets import Preset, Presets

    file = _paths(folder).presets
    presets = Presets(file)
    _ = [preset.summary for preset in presets.all().values()]
    problem = presets.problem()
    _require_sentences([problem] if problem else [])
    before = _regular_content(file)
    try:
        presets.save("new", Preset(SamplingChoice(temperature=0.1)))
    except TqchatError:
        require(_regular_content(file) == before, "A presets file that could not be read was changed.")
        raise
    require("new" in presets.all(), "A preset that was saved is not read.")
    _require_kept(file, before)


def _require_kept(file: Path, before: bytes | None) -> None:
    """Require that the content of before is still in a copy, or its values still in the file."""
    import tomllib

    copies = [_regular_content(other) for other in file.parent.iterdir() if other.suffix == file.suffix]
    if before is None or before in copies:
        return
    old, new = tomllib.loads(before.decode("utf-8-sig")), tomllib.loads(file.read_text("utf-8"))
    lost = [key for key in old if key not in new and key not in ("conversation", "gauge")]
    require(not lost, f"Values were lost: {lost}")


def _regular_content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() and file.stat().st_size < _MAX_BYTES else None


def _require_sentences(problems: list[str]) -> None:
    for problem in problems:
        require("\n" not in problem and "\x1b" not in problem, "A sentence holds a control character.")
        require(len(problem) < 2_000, f"A sentence has {len(problem):,} characters.")


def _write_theme(folder: Path) -> dict[Path, Format]:
    files = [folder / f"{name}.toml" for name in ("tqchat-dark", "tqchat-terminal")]
    for file in files:
        shutil.copy(bundled("themes") / file.name, file)
    return dict.fromkeys(files, "toml")


def _read_theme(folder: Path) -> None:
    from textual.css.stylesheet import Stylesheet

    import tqchat.ui.app
    from tqchat.ui import themes

    found = themes.load_all(folder)
    _require_sentences(found.problems)
    for theme in found.themes.values():
        shipped = bundled("themes") / f"{theme.name}.toml"
        if shipped.is_file() and shipped.read_bytes() == _regular_content(folder / shipped.name):
            continue  # the one that was not mutated
        sheet = Stylesheet(
            variables={**themes.variable_defaults(theme), **theme.to_color_system().generate()}
        )
        sheet.add_source(_default_styles())
        sheet.read(Path(tqchat.ui.app.__file__).with_name("tqchat.tcss"))
        sheet.parse()
    if found.problems:
        raise themes.BadTheme(found.problems[0])


def _default_styles() -> str:
    """The style sheets of Textual's widgets that use a text style or a variable of a theme."""
    from textual.app import App
    from textual.widget import Widget
    from textual.widgets import Button, Footer, Input, Markdown, OptionList, TextArea

    kinds: tuple[type[Any], ...] = (App, Widget, Button, Footer, Input, Markdown, OptionList, TextArea)
    return "\n".join(kind.DEFAULT_CSS for kind in kinds)


def _write_profile(folder: Path) -> dict[Path, Format]:
    from tqchat.engine.memory import quality_profile

    file = quality_profile.profiles_folder(_paths(folder)) / f"{_FINGERPRINT}.json"
    file.parent.mkdir(parents=True)
    table = json.loads(bundled("starter-profile").read_text())
    file.write_text(json.dumps(table | {"fingerprint": _FINGERPRINT}))
    return {file: "json"}


def _read_profile(folder: Path) -> None:
    from tqchat.engine.memory import quality_profile
    from tqchat.engine.memory.auto_scheme import choose

    profile = quality_profile.load(_paths(folder), _FINGERPRINT)
    if profile is None:
        raise TqchatError("refused")
    choose(profile, 1 << 30, {row.scheme: row.bytes for row in profile.rows}, 8_192)


# Conversations


def _write_database(folder: Path) -> dict[Path, Format]:
    file = _paths(folder).database
    _fill_database(file)
    return {file: "binary"}


def _fill_database(file: Path) -> None:
    from tqchat.store.database import Database

    with Database(file) as database:
        for number in range(3):
            chat = database.create(f"Title {number}", "model", "turbo4", system_prompt="Be brief.")
            first = database.add_message(chat.id, "user", f"Question {number} about cats. " * 9)
            database.add_message(chat.id, "assistant", "An answer.", reasoning="A thought.", tokens=7)
            database.add_sibling(first.id, "Another question.")


def _read_database(folder: Path) -> None:
    from tqchat.store import exchange
    from tqchat.store.database import Database
    from tqchat.store.write_queue import WriteQueue

    paths = _paths(folder)
    _damage_values(paths.database)
    with Database(paths.database) as database:
        hits = database.search("cats", 10)
        _ = [(one_line(hit.title), datetime.fromtimestamp(hit.created_at)) for hit in hits]
        for chat in database.conversations():
            _ = (
                one_line(chat.title),
                datetime.fromtimestamp(chat.updated_at),
                chat.scheme == AUTO or parse_scheme(chat.scheme),
            )
            with contextlib.suppress(TqchatError):
                for message in database.messages(chat.id):
                    _ = printable(message.content), datetime.fromtimestamp(message.created_at)
                database.totals(chat.id)
                database.version_positions(chat.id)
                "".join(exchange.to_json(database, [chat]))
                exchange.to_markdown(database, chat)
                database.add_message(chat.id, "user", "One more.")
    # As the app writes: through a queue, here without its thread.
    with Database(paths.database, WriteQueue(paths.database, print, print)) as database:
        for chat in database.conversations():
            with contextlib.suppress(TqchatError):
                database.add_message(chat.id, "user", "And one more.")
                database.messages(chat.id)
                database.unwritten()


_WEIRD_VALUES: tuple[Any, ...] = (
    None, 0, -1, 2**62, -(2**62), 1e308, -1e308, "", "x", "\x1b]0;x\x07", b"\xff\x00", "\x00", "9" * 5_000,
    "[" * 3_000, '{"temperature": NaN}', '{"seed": 1e999}', "null", 5.5, b"",
)  # fmt: skip


def _damage_values(file: Path) -> None:
    """In half of the intact files, replace a value of a row, whatever the type of its column."""
    content = _regular_content(file)
    rng = random.Random(content)
    if content is None or rng.random() < 0.5:
        return
    with contextlib.suppress(sqlite3.Error, UnicodeDecodeError, MemoryError):
        connection = sqlite3.connect(file)
        try:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            table = rng.choice(("conversations", "messages"))
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")] or ["title"]
            connection.execute(f"UPDATE {table} SET {rng.choice(columns)} = ?", (rng.choice(_WEIRD_VALUES),))
            connection.commit()
        finally:
            connection.close()


def _write_export(folder: Path) -> dict[Path, Format]:
    from tqchat.store import exchange
    from tqchat.store.database import Database

    _fill_database(folder / "source.db")
    file = folder / "export.json"
    with Database(folder / "source.db") as database:
        file.write_text("".join(exchange.to_json(database, database.conversations())))
    Database(folder / "home" / "data" / "tqchat.db").close()
    return {file: "json"}


def _read_export(folder: Path) -> None:
    from tqchat.store import exchange
    from tqchat.store.database import Database

    if not (folder / "export.json").exists():
        raise TqchatError("There is no such file.")
    with (
        open_regular(folder / "export.json") as file,
        Database(folder / "home" / "data" / "tqchat.db") as database,
    ):
        exchange.from_json(database, file)
        for chat in database.conversations():
            database.messages(chat.id)


def _write_attachment(folder: Path) -> dict[Path, Format]:
    file = folder / "notes.md"
    file.write_text("# Notes\n```python\nprint(1)\n```\n")
    return {file: "text"}


def _read_attachment(folder: Path) -> None:
    from tqchat.ui.input import attachments

    for file in attachments.read_mentioned("Look at @notes.md", folder):
        message = attachments.join("Look", [file])
        _ = attachments.split(message), file.label


# Saved caches


def _write_vault(folder: Path) -> dict[Path, Format]:
    from tqchat.kv import make_prompt_cache
    from tqchat.store.vault import Vault

    model, mx = _small_model(), _mlx()
    cache = make_prompt_cache(model, "turbo4")
    tokens = [3 + n % 90 for n in range(300)]
    model(mx.array([tokens]), cache=cache)
    Vault(folder / "vault").save("talk", cache, tokens, fingerprint=_FINGERPRINT, scheme="turbo4")
    return {
        file: "json" if file.suffix == ".json" else "safetensors"
        for file in sorted((folder / "vault" / "talk").iterdir())
    }


def _read_vault(folder: Path) -> None:
    from tqchat.lab.endure import mutations
    from tqchat.store.vault import Refused, Vault

    # With valid checksums, so that what is behind them is read as well.
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        talk = folder / "vault" / "talk"
        if all(_regular_content(file) is not None for file in talk.iterdir()):
            for file in talk.glob("*.safetensors"):
                mutations.sign(talk, file)
            mutations.rewrite(talk)
    vault = Vault(folder / "vault")
    tokens = [3 + n % 90 for n in range(300)]
    vault.restorable_tokens("talk", fingerprint=_FINGERPRINT, scheme="turbo4", transcript=tokens)
    vault.scheme("talk")
    found = vault.load("talk", fingerprint=_FINGERPRINT, scheme="turbo4", transcript=tokens)
    if isinstance(found, Refused):
        _require_sentences([found.reason])
        raise TqchatError(found.reason)


def _write_cache_file(folder: Path) -> dict[Path, Format]:
    from tqchat.kv import make_prompt_cache, snapshot

    model, mx = _small_model(), _mlx()
    cache = make_prompt_cache(model, "turbo4")
    model(mx.array([[3 + n % 90 for n in range(300)]]), cache=cache)
    snapshot.save(folder / "cache.safetensors", cache)
    return {folder / "cache.safetensors": "safetensors"}


def _read_cache_file(folder: Path) -> None:
    from tqchat.kv import snapshot

    snapshot.load(folder / "cache.safetensors")


# Models

_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "max_position_embeddings": 512,
    "vocab_size": 300,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "torch_dtype": "float16",
    "eos_token_id": [2, 0],
}
_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPECIAL = ("<unk>", "<|im_start|>", "<|im_end|>")


def _mlx() -> Any:
    import mlx.core as mx

    return mx


def _small_model() -> Any:
    from mlx_lm.models import llama

    arguments: Any = llama.ModelArgs
    return llama.Model(arguments.from_dict(_CONFIG))


def _write_model(folder: Path) -> dict[Path, Format]:
    from mlx.utils import tree_flatten
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    mx, model = _mlx(), _small_model()
    flat: Any = tree_flatten(model.parameters())
    weights = {name: array.astype(mx.float16) for name, array in flat}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *alphabet, "he", "ll"))}
    tokenizer: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=[("h", "e"), ("l", "l")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "config.json", _CONFIG)
    _write_json(
        folder / "generation_config.json",
        {"eos_token_id": [2, 0], "temperature": 0.6, "top_p": 0.9, "top_k": 20, "do_sample": True},
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 512,
            "eos_token": "<|im_end|>",
            "unk_token": "<unk>",
            "added_tokens_decoder": {"1": {"content": "<|im_start|>", "special": True}},
            "chat_template": _TEMPLATE,
        },
    )
    _write_json(folder / "special_tokens_map.json", {"eos_token": "<|im_end|>", "unk_token": "<unk>"})
    _write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, "model.safetensors")},
    )
    formats: dict[Path, Format] = dict.fromkeys(sorted(folder.glob("*.json")), "json")
    return formats | {folder / "model.safetensors": "safetensors"}


def _write_json(file: Path, table: dict[str, Any]) -> None:
    file.write_text(json.dumps(table, indent=1))


def _read_model(folder: Path) -> None:
    from tqchat.engine import backend
    from tqchat.engine.failures import user_message
    from tqchat.engine.hub import catalog
    from tqchat.engine.memory.estimate import estimate
    from tqchat.engine.models import load_folder

    described = catalog.describe(folder, "x/y", "y", "folder")
    _require_sentences([described.problem] if described.problem else [])
    with contextlib.suppress(TqchatError):
        estimate(folder, "x/y")
    model = load_folder(folder, str(folder), backend.prepare())
    try:
        _answer(model)
    except Exception as error:  # as the engine's thread does
        raise TqchatError(user_message(error)) from error


def _answer(model: LoadedModel) -> None:
    """One token after a question."""
    from tqchat.engine.commands import ChatMessage
    from tqchat.engine.prompts import Prompts
    from tqchat.kv import make_prompt_cache

    mx = _mlx()
    tokens = Prompts(model).render([ChatMessage("user", "Hello")])[:20] or [0]
    cache = make_prompt_cache(model.model, "turbo4")
    mx.eval(model.model(mx.array([[min(token, 299) for token in tokens]]), cache=cache))
    detokenizer = model.tokenizer.detokenizer
    detokenizer.reset()
    for token in tokens:
        detokenizer.add_token(token)
    detokenizer.finalize()


def _write_adapter(folder: Path) -> dict[Path, Format]:
    mx = _mlx()
    weights = {}
    for layer in range(2):
        for name in ("q_proj", "v_proj"):
            stem = f"model.layers.{layer}.self_attn.{name}"
            width = 256 if name == "q_proj" else 128
            weights[f"{stem}.lora_a"] = mx.zeros((64, 4))
            weights[f"{stem}.lora_b"] = mx.zeros((4, width))
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    parameters = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "self_attn.v_proj"]}
    _write_json(
        folder / "adapter_config.json",
        {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters, "model": "x/y"},
    )
    return {folder / "adapter_config.json": "json", folder / "adapters.safetensors": "safetensors"}


def _read_adapter(folder: Path) -> None:
    from tqchat.engine.models import adapters

    adapters.apply(_small_model(), adapters.find(str(folder)), "small")


READERS: tuple[Reader, ...] = (
    Reader("config", _write_config, _read_config),
    Reader("state", _write_state, _read_state),
    Reader("presets", _write_presets, _read_presets),
    Reader("themes", _write_theme, _read_theme),
    Reader("profiles", _write_profile, _read_profile),
    Reader("database", _write_database, _read_database),
    Reader("exports", _write_export, _read_export),
    Reader("imports", imports.write, imports.read),
    Reader("attachments", _write_attachment, _read_attachment),
    Reader("saved caches", _write_vault, _read_vault),
    Reader("cache files", _write_cache_file, _read_cache_file),
    Reader("models", _write_model, _read_model),
    Reader("adapters", _write_adapter, _read_adapter),
)
