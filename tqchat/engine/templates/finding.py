"""Finds a model's chat template among the places and names that repositories use."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqchat.engine.templates import sandbox
from tqchat.engine.templates.errors import TemplateError

_MAX_FILE_BYTES = 4 << 20
_DEFAULT_NAMES = ("default", "chat", "chat_template")
_FOR_TOOLS = "tool_use"
_OTHER_PURPOSES = ("tool", "rag", "function", "train")


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Attributes:
        source: Jinja source; empty for a template that is Python code of mlx-lm or transformers.
        function: That code: takes messages and keywords, returns the prompt's text.
        special_tokens: Variables such as ``bos_token`` that a template may write.
    """

    source: str
    function: Callable[..., Any] | None
    special_tokens: tuple[tuple[str, str], ...]

    @property
    def variables(self) -> frozenset[str]:
        """Names that the template takes from outside."""
        return sandbox.undeclared_variables(self.source)

    @property
    def literal_text(self) -> str:
        """Plain text and string constants of the template."""
        return sandbox.literal_text(self.source)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
        began: float | None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt's text.

        Args:
            tools: Definitions of functions that the model may call.
            variables: Template variables besides the messages, e.g. ``enable_thinking``.
            began: Current time as the template sees it, from ``wall_clock``; ``None`` is now.

        Raises:
            TemplateError: if the template refuses the messages or fails.
        """
        if self.function is not None:
            options = {**dict(variables), **({"tools": tools} if tools else {})}
            try:
                return str(self.function(messages, add_generation_prompt=add_generation_prompt, **options))
            except Exception as error:  # other people's code, which may raise whatever it likes
                raise TemplateError(str(error) or type(error).__name__) from error
        context = {
            **dict(self.special_tokens),
            "messages": messages,
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "strftime_now": sandbox.clock(began),
            **variables,
        }
        return sandbox.render_template(self.source, context)


def chat_template(tokenizer: Any, for_tools: bool = False) -> ChatTemplate | None:
    """The chat template of a tokenizer's model, ``None`` if it has none.

    In order: mlx-lm's own code for the model, ``chat_template.jinja`` and the templates of
    ``tokenizer_config.json`` and ``additional_chat_templates/`` (transformers reads those), then
    ``chat_template.json``, which transformers reads for processors only. An empty template, or one longer
    than 256 KiB, counts as none.

    Args:
        tokenizer: mlx-lm's ``TokenizerWrapper``.
        for_tools: Whether the template named ``tool_use`` is preferred, if there is one.
    """
    function = getattr(tokenizer, "_chat_template", None)
    if callable(function):
        return ChatTemplate("", function, ())
    source = _chosen(getattr(tokenizer, "chat_template", None), for_tools)
    if source is None:
        source = _from_json(str(getattr(tokenizer, "name_or_path", "") or ""))
    if source is not None:
        return ChatTemplate(source, None, _special_tokens(tokenizer))
    if _renders_itself(tokenizer):
        return ChatTemplate("", _by_tokenizer(tokenizer), ())
    return None


def _chosen(templates: Any, for_tools: bool = False) -> str | None:
    """The chat template: the only one, or the default of a table or a list of named ones."""
    if isinstance(templates, str):
        return templates if _usable(templates) else None
    if isinstance(templates, (list, tuple)):
        templates = {one.get("name"): one.get("template") for one in templates if isinstance(one, Mapping)}
    if not isinstance(templates, Mapping):
        return None
    usable = {str(name): text for name, text in templates.items() if _usable(text)}
    for name in ((_FOR_TOOLS,) if for_tools else ()) + _DEFAULT_NAMES:
        if name in usable:
            return str(usable[name])
    for_chats = [name for name in sorted(usable) if not any(word in name for word in _OTHER_PURPOSES)]
    names = for_chats or sorted(usable)
    return str(usable[names[0]]) if names else None


def _usable(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip()) and len(text) <= sandbox.MAX_TEMPLATE_LENGTH


def _from_json(folder: str) -> str | None:
    path = Path(folder) / "chat_template.json"
    try:
        facts = path.stat()
    except OSError:
        return None
    if not folder or facts.st_size > _MAX_FILE_BYTES:
        return None
    return _read_json(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=4)
def _read_json(path: Path, mtime_ns: int, size: int) -> str | None:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _chosen(table.get("chat_template")) if isinstance(table, dict) else None


def _special_tokens(tokenizer: Any) -> tuple[tuple[str, str], ...]:
    table = getattr(tokenizer, "special_tokens_map", None) or {}
    return tuple((name, str(text)) for name, text in table.items() if isinstance(text, str))


def _renders_itself(tokenizer: Any) -> bool:
    """Whether the tokenizer's class brings a template as code."""
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    method = getattr(type(inner), "apply_chat_template", None)
    return method is not None and method is not PreTrainedTokenizerBase.apply_chat_template


def _by_tokenizer(tokenizer: Any) -> Callable[..., Any]:
    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    return lambda messages, **options: inner.apply_chat_template(messages, tokenize=False, **options)
