"""Loads a model in the dtype that is fastest on this machine."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqchat.engine import backend
from tqchat.engine.commands import ChatMessage, model_ref
from tqchat.engine.events import ModelInfo
from tqchat.engine.failures import OTHER_COPY, ModelUnusable, UnknownToken, as_model_error, reason_of
from tqchat.engine.hub import model_folder
from tqchat.engine.hub.remote import download
from tqchat.engine.hub.resolve import resolve
from tqchat.engine.memory.allocation import allocate
from tqchat.engine.memory.budget import SHARE_OF_AVAILABLE, memory_budget
from tqchat.engine.memory.quality_profile import Profile
from tqchat.engine.memory.shapes import at_length, cache_shapes
from tqchat.engine.model_config import context_limit
from tqchat.engine.models import adapters, token_tables
from tqchat.engine.models.fingerprint import fingerprint
from tqchat.engine.models.sampling_defaults import sampling_defaults
from tqchat.engine.reasoning import ReplyFormat, ends_of, named_eos_tokens
from tqchat.engine.templates import (
    PromptRejected,
    ThinkingSwitch,
    chat_template,
    default_choice,
    default_variables,
    render,
    thinking_switch,
)
from tqchat.files import temporary_folder
from tqchat.kv.scheme import Scheme, parse_scheme
from tqchat.text import one_line
from tqchat.units import size

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx.nn.layers.base import Module

ALLOCATION_TOKENS = 4096
"""Length of the cache that bits are allocated for; it matters where windows are shorter."""

FindProfile = Callable[[ModelInfo], Profile | None]
"""Finds the quality profile of a model."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        cache_dtype: Dtype of raw tokens in caches; ``None`` for the compute dtype.
        compute: Name of the dtype that it computes in.
        adapter: The LoRA adapter that was added.
        replaced: Modules that the adapter replaced.
        find_profile: Finds the quality profile of a model.
    """

    model: Module
    tokenizer: Any
    info: ModelInfo
    config: dict[str, Any]
    cache_dtype: mx.Dtype | None
    folder: Path
    compute: str
    adapter: adapters.Adapter | None = None
    replaced: Any = None
    find_profile: FindProfile = lambda info: None

    @cached_property
    def profile(self) -> Profile | None:
        """The model's quality profile, if it was measured."""
        return self.find_profile(self.info)

    def resolve_scheme(self, name: str) -> Scheme:
        """The scheme of that name, with bits by layer where the model's profile has sensitivities.

        Raises:
            UnknownScheme: if there is no scheme of that name.
        """
        scheme = parse_scheme(name)
        if self.profile is None or self.info.shapes is None:
            return scheme
        return allocate(scheme, self.profile.sensitivity, at_length(self.info.shapes, ALLOCATION_TOKENS))

    @property
    def context_limit(self) -> int | None:
        """The model's context limit in tokens."""
        return self.info.context_limit

    @cached_property
    def thinking_switch(self) -> ThinkingSwitch | None:
        """The switch for its reasoning that its chat template knows."""
        return thinking_switch(chat_template(self.tokenizer))

    @cached_property
    def reply_format(self) -> ReplyFormat:
        """The model's reasoning marks and end-of-turn tokens."""
        return ReplyFormat(self.tokenizer, ends_of(self.tokenizer))

    @cached_property
    def _embedded_tokens(self) -> int | None:
        from tqchat.engine.models import weights

        return weights.embedded_tokens(self.model)

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Check that the model has vectors for all tokens: MLX would read whatever lies behind the last one.

        Raises:
            UnknownToken: if it has not.
        """
        known, greatest = self._embedded_tokens, max(tokens, default=0)
        if known is not None and greatest >= known:
            raise UnknownToken(self.info.name, greatest, known)

    @property
    def on_cpu(self) -> bool:
        """Whether the model runs on a CPU, where prefill chunks are smaller."""
        return self.info.device.startswith("cpu")


def load(
    ref: str | None = None,
    *,
    progress: download.Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    adapter: str | None = None,
    find_profile: FindProfile = lambda info: None,
) -> LoadedModel:
    """Find or download a model and load it on this thread.

    On a CPU, weights are converted to float32 if that fits into memory; caches keep the native 16-bit dtype.

    Args:
        adapter: Folder of a LoRA adapter to add, or ``NO_ADAPTER``.
        find_profile: Finds the quality profile of a model.

    Raises:
        TqchatError: if it cannot be downloaded or loaded; the message is one sentence.
    """
    adapter = adapters.chosen(adapter, None)
    if adapter is not None:
        adapters.find(adapter)  # before a download
    machine = backend.prepare()
    return load_folder(resolve(ref, progress, cancelled), ref, machine, adapter, find_profile)


def load_folder(
    folder: Path,
    ref: str | None,
    machine: backend.Backend,
    adapter: str | None = None,
    find_profile: FindProfile = lambda info: None,
) -> LoadedModel:
    """Load the model in a folder; ``ref`` is the name it was asked for by.

    Args:
        adapter: Folder of a LoRA adapter to add.
        find_profile: Called with the loaded model's description.

    Raises:
        NotAModel, NeedsCustomCode, UnsupportedModel, ModelUnusable: if it cannot be loaded.
        AdapterUnusable: if the adapter cannot be loaded or does not fit.
    """
    config = model_folder.check(folder)
    added = None if adapter is None else adapters.find(adapter)
    if machine.name == "cuda":
        from tqchat.engine.models import cuda_products

        cuda_products.install()
    model, config = _load_weights(folder, config)
    with as_model_error(model_folder.display_name(folder)):
        plain = _described(folder, ref, machine, model, config, find_profile)
        _ = plain.reply_format  # a tokenizer that fails on any text does so here
        with suppress(PromptRejected):
            plain.check_tokens(render(plain.tokenizer, [ChatMessage("user", "Hello")]))
    return plain if added is None else with_adapter(plain, added)


def _described(
    folder: Path,
    ref: str | None,
    machine: backend.Backend,
    model: Any,
    config: dict[str, Any],
    find_profile: FindProfile,
) -> LoadedModel:
    """The model with its tokenizer and what the program needs to know of it."""
    tokenizer = _load_tokenizer(folder)

    import mlx.core as mx

    from tqchat.engine.models import weights

    cache_dtype: mx.Dtype | None = None
    half = weights.native_half_dtype(model, config)
    in_half = weights.computes_in_half(model)
    if machine.name == "cpu" and in_half:
        if fits_as_float32(model):
            weights.to_float32(model)
            in_half = False
        elif weights.has_half_experts(model):
            raise ModelUnusable(
                f"{model_folder.display_name(folder)} is a mixture of experts in 16 bits, which a CPU cannot "
                f"compute, and in 32 bits it takes {size(weights.float32_bytes(model))}, more than there is "
                "memory for; choose a quantised version of it or a smaller model."
            )
    if not in_half:
        cache_dtype = half
    ref = model_ref(ref)
    name = one_line(ref.rstrip("/").rpartition("/")[2] or folder.name)
    compute = "float32" if not in_half else str(half)
    switch = thinking_switch(chat_template(tokenizer))
    sampling, warning = sampling_defaults(folder)
    info = ModelInfo(
        name=name,
        ref=ref,
        fingerprint=_fingerprint(folder, compute, cache_dtype),
        architecture=str(config["model_type"]),
        layers=len(model.layers),
        weight_bytes=weights.weight_bytes(model),
        context_limit=context_limit(config),
        device=f"{machine.name}: {machine.device}",
        memory_budget=memory_budget(machine.memory_bytes, weights.weight_bytes(model)),
        shapes=cache_shapes(model),
        sampling=sampling,
        warning=warning,
        thinking_choices=switch.choices if switch is not None else (),
        thinking_default=default_choice(chat_template(tokenizer), switch, default_variables(tokenizer)),
    )
    mx.clear_cache()
    return LoadedModel(
        model, tokenizer, info, config, cache_dtype, folder, compute, find_profile=find_profile
    )


def with_adapter(plain: LoadedModel, adapter: adapters.Adapter) -> LoadedModel:
    """Add an adapter to a model without one. They share the weights: the given model must not be used again.

    Raises:
        AdapterUnusable: if it does not fit; the model is unchanged then.
    """
    from tqchat.engine.models import weights

    model, info = plain.model, plain.info
    replaced = adapters.apply(model, adapter, model_folder.display_name(plain.folder))
    if plain.compute == "float32":
        weights.widen(model)
    loaded_bytes = weights.weight_bytes(model)
    info = replace(
        info,
        fingerprint=_fingerprint(plain.folder, plain.compute, plain.cache_dtype, f"adapter {adapter.digest}"),
        weight_bytes=loaded_bytes,
        memory_budget=memory_budget(backend.prepare().memory_bytes, loaded_bytes),
        adapter=adapter.name,
    )
    return replace(plain, info=info, adapter=adapter, replaced=replaced)


def without_adapter(loaded: LoadedModel) -> LoadedModel:
    """Take the adapter away from a model; the given model must not be used again.

    Raises:
        TqchatError: if the weights were replaced and cannot be loaded again.
    """
    from tqchat.engine.models import weights

    if loaded.adapter is None:
        return loaded
    if not loaded.adapter.adds_layers:
        machine = backend.prepare()
        return load_folder(loaded.folder, loaded.info.ref, machine, find_profile=loaded.find_profile)
    loaded.model.update_modules(loaded.replaced)
    loaded_bytes = weights.weight_bytes(loaded.model)
    info = replace(
        loaded.info,
        fingerprint=_fingerprint(loaded.folder, loaded.compute, loaded.cache_dtype),
        weight_bytes=loaded_bytes,
        memory_budget=memory_budget(backend.prepare().memory_bytes, loaded_bytes),
        adapter=None,
    )
    return replace(loaded, info=info, adapter=None, replaced=None)


def _fingerprint(folder: Path, compute: str, cache_dtype: mx.Dtype | None, *traits: str) -> str:
    return fingerprint(folder, f"compute {compute}", f"cache {cache_dtype}", *traits)


def _load_weights(folder: Path, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from mlx_lm.utils import load_model

    try:
        with _without_wildcards(folder) as place:
            # Never run code that comes with a model.
            return load_model(place, trust_remote_code=False)
    except MemoryError as error:
        raise ModelUnusable(
            f"{model_folder.display_name(folder)} does not fit into memory; choose a smaller model."
        ) from error
    except Exception as error:
        kind = config["model_type"]
        text = str(error)
        if "not supported" in text and kind in text:
            reason = f"mlx-lm does not know its architecture ({kind}); a newer mlx-lm may"
        elif "Missing" in text and "parameters" in text:
            reason = "weights are missing from its files; download it again"
        elif "not in model" in text:
            reason = "its files hold weights that its config.json does not account for"
        elif found := re.search(r"missing \d+ required positional arguments?: (.*)", text):
            reason = f"its config.json lacks {one_line(found[1][:200])}"
        elif "shape" in text.lower():
            reason = "its weights do not have the shapes that its config.json says"
        else:
            reason = f"{reason_of(error)}; {OTHER_COPY}"
        raise ModelUnusable(
            f"{model_folder.display_name(folder)} cannot be loaded: {reason.rstrip('.')}."
        ) from error


@contextmanager
def _without_wildcards(folder: Path) -> Iterator[Path]:
    """The folder by a name that is no pattern: mlx-lm searches for the weights with ``glob``."""
    if glob.escape(str(folder)) == str(folder):
        yield folder
        return
    with temporary_folder() as temporary:
        link = temporary / "model"
        link.symlink_to(folder.resolve())
        yield link


def _load_tokenizer(folder: Path) -> Any:
    import transformers
    from mlx_lm.utils import load_tokenizer

    token_tables.check(folder)
    # What it logs would be printed over the application's screen.
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        options: dict[str, Any] = {"trust_remote_code": False}
        try:
            tokenizer = load_tokenizer(folder, options, eos_token_ids=[])  # type: ignore[no-untyped-call]
        except Exception as error:
            # transformers refuses values of config.json that mlx-lm accepts and no tokenizer needs.
            options["config"] = transformers.PretrainedConfig()
            try:
                tokenizer = load_tokenizer(folder, options, eos_token_ids=[])  # type: ignore[no-untyped-call]
            except Exception:
                raise error from None
        if not tokenizer.encode("Hello", add_special_tokens=False):
            raise ValueError("it makes no tokens of a word")
        tokenizer.eos_token_ids = tokenizer.eos_token_ids | named_eos_tokens(folder)
        return tokenizer
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "trust_remote_code" in str(error):
            raise model_folder.NeedsCustomCode(
                f"{model_folder.display_name(folder)} has a tokenizer with its own Python code, "
                "which tqchat never runs; choose another version of the model."
            ) from error
        lines = str(error)[:300].splitlines() or [type(error).__name__]
        reason = one_line(lines[0]).rstrip(".")
        raise ModelUnusable(
            f"The tokenizer of {model_folder.display_name(folder)} cannot be loaded: {reason}; {OTHER_COPY}."
        ) from error


def fits_as_float32(model: Any) -> bool:
    """Whether there is memory for the weights as float32."""
    from tqchat.engine.models import weights

    return weights.float32_bytes(model) < backend.available_memory() * SHARE_OF_AVAILABLE
