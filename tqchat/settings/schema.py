"""Every setting, once: its words, what it may be, how it is written. ``config.toml`` is checked against this
table, and the settings screen is made from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tqchat.kv.scheme import SCHEMES, UnknownScheme, scheme_setting

Group = Literal["Look", "Model", "Cache", "Replies"]
GROUPS: tuple[Group, ...] = ("Look", "Model", "Cache", "Replies")
Kind = Literal["theme", "model", "scheme", "text", "whole", "number", "flag", "folders", "keys"]


@dataclass(frozen=True)
class Setting:
    """One setting.

    ``help`` is a sentence for people; ``allowed`` completes "it must be ..."; ``unset`` says what holds where
    nothing is set; ``holds`` when a change does.
    """

    name: str
    group: Group
    kind: Kind
    help: str
    allowed: str
    accepts: Callable[[Any], bool]
    unset: str
    holds: str = "at once"

    @property
    def title(self) -> str:
        """The name in words: ``top p``, ``cache budget``."""
        return self.name.replace("_", " ")

    def problem(self, value: object) -> str | None:
        """What the setting may be, if this value is not."""
        return None if self.accepts(value) else self.allowed

    def read(self, text: str) -> object:
        """A value as a person writes it.

        Raises:
            ValueError: with what may be written, if this may not.
        """
        text = text.strip()
        value: object = text
        try:
            if self.kind == "whole":
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

    def written(self, value: object) -> str:
        """A value as a person would write it; empty where nothing is set."""
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
    """Numbers from ``least`` to ``most``; without ``least`` itself where it is ``above``."""

    least: float
    most: float
    above: bool = False
    whole: bool = False

    @property
    def words(self) -> str:
        if self.whole:
            return f"a whole number from {self.least} to {self.most}"
        if self.above:
            return f"a number above {self.least:g} and at most {self.most:g}"
        return f"a number from {self.least:g} to {self.most:g}"

    def __call__(self, value: Any) -> bool:
        # bool is an int to Python, but not to the person who wrote `true`.
        if type(value) is not int and (self.whole or type(value) is not float):
            return False
        return bool((self.least < value if self.above else self.least <= value) and value <= self.most)


def _flag(name: str, group: Group, help: str, unset: str) -> Setting:
    return Setting(name, group, "flag", help, "yes or no (true or false in the file)", _is_flag, unset)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _ranged(name: str, group: Group, help: str, range: _Range, unset: str, holds: str = "at once") -> Setting:
    kind: Kind = "whole" if range.whole else "number"
    return Setting(name, group, kind, help, range.words, range, unset, holds)


_NEW = "in new conversations"
_START = "from the next start"
_MODELS_OWN = "the model's own"
_MOST = 1_000_000

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "theme",
        "Look",
        "theme",
        "The colours: one of tqchat's themes, one of your own, or one of Textual's.",
        "the name of a theme",
        _text,
        "tqchat-dark",
    ),
    Setting(
        "keys",
        "Look",
        "keys",
        'Your own keys by action, in the table [keys] of config.toml: scheme = "f12", new = "ctrl+e,alt+n".',
        'a table of keys by action, such as scheme = "ctrl+k"',
        _texts,
        "the keys that F1 shows",
        _START,
    ),
    Setting(
        "model",
        "Model",
        "model",
        "The model that is loaded at the start: a folder, a Hugging Face repo id, or the bundled starter.",
        "a folder or a Hugging Face repo id",
        _text,
        "starter",
        _START,
    ),
    Setting(
        "draft",
        "Model",
        "model",
        "A small model of the same vocabulary that proposes tokens, so that replies come sooner.",
        "a folder or a Hugging Face repo id",
        _text,
        "none",
        _START,
    ),
    Setting(
        "model_folders",
        "Model",
        "folders",
        "Folders that the model picker looks into, besides the Hugging Face cache; a comma between two.",
        "a list of folders",
        _folders,
        "none",
    ),
    Setting(
        "system_prompt",
        "Model",
        "text",
        "What the model is told before the first message.",
        "a text",
        lambda value: isinstance(value, str),
        "nothing",
        _NEW,
    ),
    Setting(
        "scheme",
        "Cache",
        "scheme",
        "How a conversation's cache is stored; auto picks a scheme for the model and says why.",
        f"auto, or a cache scheme such as {', '.join(scheme.name for scheme in SCHEMES)}",
        _scheme,
        "turbo0v4",
        _NEW,
    ),
    _ranged(
        "memory_budget",
        "Cache",
        "GiB of memory that one conversation's cache may take: the gauge says what still fits into it.",
        _Range(0, 100_000, above=True),
        "half of what the weights leave",
    ),
    _flag(
        "step_down",
        "Cache",
        "Whether a conversation at its memory budget goes on under a smaller scheme; else the reply stops.",
        "no",
    ),
    _flag(
        "pack_prompts",
        "Cache",
        "Whether prompts are compressed while they are read, and not only where they would not fit raw.",
        "no",
    ),
    _ranged(
        "cache_budget",
        "Cache",
        "GiB on disk that all saved caches may take together; the least recently used make room.",
        _Range(0, 100_000, above=True),
        "20 GiB, or a quarter of free space",
        _START,
    ),
    _ranged(
        "max_tokens",
        "Replies",
        "The longest reply, in tokens; one that is cut off can go on.",
        _Range(1, _MOST, whole=True),
        "1024",
    ),
    _ranged(
        "temperature",
        "Replies",
        "How freely the next token is drawn: 0 always takes the likeliest.",
        _Range(0, 5),
        _MODELS_OWN,
    ),
    _ranged(
        "top_p",
        "Replies",
        "Only the likeliest tokens that together have this probability are drawn from.",
        _Range(0, 1, above=True),
        _MODELS_OWN,
    ),
    _ranged(
        "top_k",
        "Replies",
        "Only this many of the likeliest tokens are drawn from; 0 means all.",
        _Range(0, _MOST, whole=True),
        _MODELS_OWN,
    ),
    _ranged(
        "min_p",
        "Replies",
        "Tokens less likely than this share of the likeliest one are never drawn.",
        _Range(0, 1),
        _MODELS_OWN,
    ),
    _ranged(
        "repetition_penalty",
        "Replies",
        "Above 1, words that were just used become less likely.",
        _Range(0, 10, above=True),
        _MODELS_OWN,
    ),
    _ranged(
        "seed",
        "Replies",
        "The same number draws the same reply again.",
        _Range(0, 2**63 - 1, whole=True),
        "another each time",
    ),
)

BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}


def allowed(name: str, value: object) -> str | None:
    """What a setting may be, if this value is not: completes the sentence "it must be ..."."""
    return BY_NAME[name].problem(value)
