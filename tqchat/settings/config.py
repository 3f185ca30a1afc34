"""The effective settings: ``config.toml``, overridden by settings changed in the app (``state.toml``)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tqchat.engine.commands import Limits, Sampling, Thinking, ThinkingChoice
from tqchat.errors import TqchatError
from tqchat.files import Unreadable, read_toml
from tqchat.kv.scheme import AUTO
from tqchat.paths import Paths
from tqchat.settings.schema import SETTINGS_BY_NAME, ThinkingDisplay, violation
from tqchat.settings.state import State
from tqchat.text import shown_value
from tqchat.units import GB

_MAX_COMPARED_CHARS = 60
_MAX_PROBLEMS = 20


class SettingsError(TqchatError):
    """``config.toml`` is unreadable or invalid."""

    exit_code = 2


@dataclass(frozen=True)
class Settings:
    """All settings; ``schema.py`` describes each.

    ``None``: the default is the model's (``generation_config.json``) or depends on the machine (budgets).
    """

    theme: str = "tqchat-dark"
    keys: Mapping[str, str] = field(default_factory=dict)
    mouse: bool = True
    update_check: bool = True
    model: str | None = None
    draft: str | None = None
    adapter: str | None = None
    model_folders: tuple[str, ...] = ()
    system_prompt: str | None = None
    scheme: str = AUTO
    memory_budget: float | None = None
    step_down: bool = False
    pack_prompts: bool = False
    cache_budget: float | None = None
    thinking: ThinkingChoice | None = None
    thinking_budget: int | None = None
    show_thinking: ThinkingDisplay = "folded"
    max_tokens: int = 1024
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    seed: int | None = None

    @property
    def sampling(self) -> Sampling:
        """The sampling settings."""
        chosen: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(Sampling)}
        return Sampling(**chosen)

    @property
    def reasoning(self) -> Thinking:
        """Whether and how much models reason."""
        return Thinking(self.thinking, self.thinking_budget)

    @property
    def memory_budget_bytes(self) -> int | None:
        """``memory_budget`` in bytes."""
        return None if self.memory_budget is None else int(self.memory_budget * GB)

    @property
    def limits(self) -> Limits:
        """Memory limits of one conversation's cache."""
        return Limits(self.memory_budget_bytes, self.step_down, self.pack_prompts)

    def with_values(self, values: Mapping[str, Any]) -> Settings:
        """A copy with some values replaced; they must be valid."""
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return replace(self, **given)


def load(paths: Paths) -> Settings:
    """The effective settings: defaults, overridden by ``config.toml``, overridden by changes in the app.

    Raises:
        SettingsError: if ``config.toml`` is unreadable or invalid.
    """
    return load_config(paths).with_values(State.load(paths).settings)


def load_config(paths: Paths) -> Settings:
    """The settings of ``config.toml`` alone.

    Raises:
        SettingsError: if the file is unreadable or holds invalid values; names the file, each key and its
            allowed values.
    """
    settings, problems = read_config(paths)
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def read_config(paths: Paths) -> tuple[Settings, list[str]]:
    """The usable settings of ``config.toml``, and a sentence about each value that is not used."""
    file = paths.config_file
    try:
        values = read_toml(file)
    except FileNotFoundError:
        return Settings(), []
    except Unreadable as error:
        return Settings(), [str(error)]
    problems: list[str] = []
    used: dict[str, Any] = {}
    for key, value in values.items():
        if len(problems) >= _MAX_PROBLEMS:
            problems.append(f"{file} has more problems than these.")
            break
        if key not in SETTINGS_BY_NAME:
            problems.append(f"{file}: there is no setting {shown_value(key)}; {_nearest(key)}.")
        elif (allowed := violation(key, value)) is not None:
            quoted = (
                ", in quotes"
                if SETTINGS_BY_NAME[key].kind in ("theme", "model", "folder", "text", "choice", "scheme")
                else ""
            )
            problems.append(f"{file}: {key} is {shown_value(value)}, but must be {allowed}{quoted}.")
        else:
            used[key] = value
    return Settings().with_values(used), problems


def _nearest(key: str) -> str:
    close = difflib.get_close_matches(key[:_MAX_COMPARED_CHARS], SETTINGS_BY_NAME, n=1)
    return f"did you mean {close[0]!r}?" if close else f"the settings are {', '.join(SETTINGS_BY_NAME)}"
