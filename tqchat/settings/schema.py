"""The table of settings: help text, allowed values, parsing and formatting.

``config.toml`` is validated against it, and the settings screen is generated from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tqchat.engine.commands import STARTER, THINKING_CHOICES
from tqchat.kv.scheme import AUTO, SCHEMES, UnknownScheme, scheme_setting

Group = Literal["Look", "Model", "Cache", "Replies"]
GROUPS: tuple[Group, ...] = ("Look", "Model", "Cache", "Replies")
Kind = Literal[
    "theme", "model", "scheme", "text", "choice", "integer", "number", "flag", "folder", "folders", "keys"
]

ThinkingDisplay = Literal["folded", "streaming", "open"]
THINKING_DISPLAYS: tuple[ThinkingDisplay, ...] = ("folded", "streaming", "open")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        help: One sentence for the user.
        allowed: The allowed values; completes the sentence "it must be ...".
        accepts: Whether a value is allowed.
        default_text: The default in words.
        applies: When a change takes effect; completes the sentence "applies ...".
    """

    name: str
    group: Group
    kind: Kind
    help: str
    allowed: str
    accepts: Callable[[Any], bool]
    default_text: str
    applies: str = "at once"

    @property
    def title(self) -> str:
        """The name with spaces: ``top p``, ``cache budget``."""
        return self.name.replace("_", " ")

    def violation(self, value: object) -> str | None:
        """The allowed values if ``value`` is not one of them, else ``None``."""
        return None if self.accepts(value) else self.allowed

    def parse(self, text: str) -> object:
        """Parse a value that the user typed.

        Raises:
            ValueError: with the allowed values, if it is not one.
        """
        text = text.strip()
        value: object = text
        try:
            if self.kind == "integer":
                value = int(text)
            elif self.kind == "number":
                value = float(text)
            elif self.kind == "flag":
                value = {"yes": True, "true": True, "no": False, "false": False}[text.lower()]
            elif self.kind == "folders":
                value = [folder.strip() for folder in text.split(",") if folder.strip()]
        except (ValueError, KeyError):
            raise ValueError(self.allowed) from None
        if not self.accepts(value):
            raise ValueError(self.allowed)
        return scheme_setting(text) if self.kind == "scheme" else value

    def format(self, value: object) -> str:
        """A value as text that ``parse`` accepts; empty if it is not set."""
        if value is None:
            return ""
        if isinstance(value, tuple | list):
            return ", ".join(map(str, value))
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float):
            return f"{value:g}"
        return str(value)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _folders(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_text(folder) for folder in value)


def _scheme(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        scheme_setting(value)
    except UnknownScheme:
        return False
    return True


@dataclass(frozen=True)
class _Range:
    """Numbers from ``least`` (exclusive if ``above``) to ``most``."""

    least: float
    most: float
    above: bool = False
    integer: bool = False

    @property
    def words(self) -> str:
        if self.integer:
            return f"a whole number from {self.least} to {self.most}"
        if self.above:
            return f"a number above {self.least:g} and at most {self.most:g}"
        return f"a number from {self.least:g} to {self.most:g}"

    def __call__(self, value: Any) -> bool:
        # bool is a subclass of int, but `true` is not a number in config.toml.
        if type(value) is not int and (self.integer or type(value) is not float):
            return False
        return bool((self.least < value if self.above else self.least <= value) and value <= self.most)


def _flag(name: str, group: Group, help: str, default: str) -> Setting:
    return Setting(name, group, "flag", help, "yes or no (true or false in the file)", _is_flag, default)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _ranged(
    name: str, group: Group, help: str, range: _Range, default: str, applies: str = "at once"
) -> Setting:
    kind: Kind = "integer" if range.integer else "number"
    return Setting(name, group, kind, help, range.words, range, default, applies)


_NEW = "to new conversations"
_START = "from the next start on"
_MODEL_DEFAULT = "the model's own"
_MAX_COUNT = 1_000_000

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "theme",
        "Look",
        "theme",
        "The colour theme: one of tqchat's, one of your own, or one of Textual's.",
        "the name of a theme",
        _text,
        "tqchat-dark",
    ),
    Setting(
        "keys",
        "Look",
        "keys",
        'Key bindings by action, in the table [keys] of config.toml: scheme = "f12", new = "ctrl+e,alt+n".',
        'a table of keys by action, such as scheme = "ctrl+k"',
        _texts,
        "the keys that F1 shows",
        _START,
    ),
    _flag(
        "mouse",
        "Look",
        "Whether tqchat takes the mouse; without it, the terminal's own selection works and clicks do not.",
        "yes",
    ),
    _flag(
        "update_check",
        "Look",
        "Whether a newer version is looked for once a week, with pip; a line above the prompt names it.",
        "yes",
    ),
    Setting(
        "model",
        "Model",
        "model",
        "The model to load at the start: a folder, a Hugging Face repo id, or the bundled model's name.",
        "a folder or a Hugging Face repo id",
        _text,
        STARTER,
        _START,
    ),
    Setting(
        "draft",
        "Model",
        "model",
        "Faster replies: prompt proposes tokens that the conversation repeats; or a small model, or none.",
        "auto, prompt, none, or a draft model: a folder or a Hugging Face repo id",
        _text,
        AUTO,
        _START,
    ),
    Setting(
        "adapter",
        "Model",
        "folder",
        "The folder of a LoRA adapter for the model of the start; /adapter chooses one for a conversation.",
        "a folder",
        _text,
        "none",
        _START,
    ),
    Setting(
        "model_folders",
        "Model",
        "folders",
        "Folders in which the model list looks besides the Hugging Face cache, separated by commas.",
        "a list of folders",
        _folders,
        "none",
    ),
    Setting(
        "system_prompt",
        "Model",
        "text",
        "Instructions for the model, before the first message.",
        "a text",
        lambda value: isinstance(value, str),
        "nothing",
        _NEW,
    ),
    Setting(
        "scheme",
        "Cache",
        "scheme",
        "How a conversation's KV cache is stored; auto chooses a scheme for the model and says why.",
        f"auto, or a cache scheme such as {', '.join(scheme.name for scheme in SCHEMES)}",
        _scheme,
        AUTO,
        _NEW,
    ),
    _ranged(
        "memory_budget",
        "Cache",
        "Memory for one conversation's cache, in GB; the gauge shows how much still fits.",
        _Range(0, 100_000, above=True),
        "half of the memory left by the weights",
    ),
    _flag(
        "step_down",
        "Cache",
        "Whether a conversation that reaches its memory budget switches to a smaller scheme; else it stops.",
        "no",
    ),
    _flag(
        "pack_prompts",
        "Cache",
        "Whether prompts are always compressed during prefill, not only when they would not fit otherwise.",
        "no",
    ),
    _ranged(
        "cache_budget",
        "Cache",
        "Disk space for all saved caches, in GB; the least recently used are deleted first.",
        _Range(0, 100_000, above=True),
        "20 GB, or a quarter of free space",
        _START,
    ),
    Setting(
        "thinking",
        "Replies",
        "choice",
        "Whether and how much a model reasons before it answers, if its chat template has a switch for it.",
        "on, off, low, medium or high",
        lambda value: isinstance(value, str) and value in THINKING_CHOICES,
        _MODEL_DEFAULT,
    ),
    _ranged(
        "thinking_budget",
        "Replies",
        "Maximum length of the reasoning in tokens; then the answer begins.",
        _Range(0, _MAX_COUNT, integer=True),
        "no limit",
    ),
    Setting(
        "show_thinking",
        "Replies",
        "choice",
        "Whether reasoning is open always, or while it streams, or folded to its last lines and then to one.",
        "folded, streaming or open",
        lambda value: isinstance(value, str) and value in THINKING_DISPLAYS,
        "folded",
        "to replies shown from then on",
    ),
    _ranged(
        "max_tokens",
        "Replies",
        "Maximum length of a reply in tokens; a reply that is cut off can be continued.",
        _Range(1, _MAX_COUNT, integer=True),
        "1024",
    ),
    _ranged(
        "temperature",
        "Replies",
        "Randomness of sampling: 0 always takes the most likely token.",
        _Range(0, 5),
        _MODEL_DEFAULT,
    ),
    _ranged(
        "top_p",
        "Replies",
        "Sample only from the most likely tokens that together have this probability.",
        _Range(0, 1, above=True),
        _MODEL_DEFAULT,
    ),
    _ranged(
        "top_k",
        "Replies",
        "Sample only from this many of the most likely tokens; 0 means all.",
        _Range(0, _MAX_COUNT, integer=True),
        _MODEL_DEFAULT,
    ),
    _ranged(
        "min_p",
        "Replies",
        "Never sample tokens less likely than this fraction of the most likely one.",
        _Range(0, 1),
        _MODEL_DEFAULT,
    ),
    _ranged(
        "repetition_penalty",
        "Replies",
        "Above 1, recently used tokens become less likely.",
        _Range(0, 10, above=True),
        _MODEL_DEFAULT,
    ),
    _ranged(
        "presence_penalty",
        "Replies",
        "Above 0, recently used tokens become less likely; below 0, more likely.",
        _Range(-2, 2),
        _MODEL_DEFAULT,
    ),
    _ranged(
        "frequency_penalty",
        "Replies",
        "Above 0, tokens become less likely with each recent use; below 0, more likely.",
        _Range(-2, 2),
        _MODEL_DEFAULT,
    ),
    _ranged(
        "xtc_probability",
        "Replies",
        "Probability of excluding all but the least likely token above the XTC threshold.",
        _Range(0, 1),
        _MODEL_DEFAULT,
    ),
    _ranged(
        "xtc_threshold",
        "Replies",
        "Tokens at least this probable can be excluded by XTC.",
        _Range(0, 0.5),
        "0.1",
    ),
    _ranged(
        "seed",
        "Replies",
        "Random seed: the same number repeats the same reply.",
        _Range(0, 2**63 - 1, integer=True),
        "random",
    ),
)

SETTINGS_BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}


def violation(name: str, value: object) -> str | None:
    """The allowed values if ``value`` is not one of them; completes the sentence "it must be ..."."""
    return SETTINGS_BY_NAME[name].violation(value)
