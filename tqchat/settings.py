"""``config.toml``, which is the user's and only read, and ``state.toml``, which is the app's."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from tqchat.engine.commands import Sampling
from tqchat.errors import TqchatError
from tqchat.files import write_atomically
from tqchat.kv.scheme import SCHEMES, UnknownScheme, scheme_setting
from tqchat.paths import Paths, make_private_folder

DEFAULT_SCHEME = "turbo0v4"
"""FP16 keys and 4-bit values: errors in values average out, errors in keys do not."""


class SettingsError(TqchatError):
    """``config.toml`` cannot be used as it is."""

    exit_code = 2


@dataclass(frozen=True)
class Settings:
    """What the user decided. ``None`` leaves a choice to the model's own ``generation_config.json``.

    Attributes:
        theme: Name of a theme, bundled or the user's.
        model: Folder or Hugging Face repo id; ``None`` is the bundled starter.
        scheme: Cache scheme of new conversations.
        system_prompt: First message of every conversation, unseen in the chat.
        max_tokens: Longest reply, in tokens.
        cache_budget: GiB on disk that the saved caches may take together; ``None`` is 20, and no more than a
            quarter of what is free.
        keys: The person's own keys, by action: the table ``[keys]``. The screen knows the actions.
    """

    theme: str = "tqchat-dark"
    model: str | None = None
    scheme: str = DEFAULT_SCHEME
    system_prompt: str | None = None
    max_tokens: int = 1024
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    cache_budget: float | None = None
    keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def sampling(self) -> Sampling:
        """How replies are drawn under these settings."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            max_tokens=self.max_tokens,
            seed=self.seed,
        )


@dataclass(frozen=True)
class _Rule:
    """What a key takes: ``allowed`` completes the sentence "it must be ..."."""

    allowed: str
    accepts: Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _scheme(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        scheme_setting(value)
    except UnknownScheme:
        return False
    return True


def _whole(least: int, most: int) -> _Rule:
    # bool is an int to Python, but not to the person who wrote `true`.
    return _Rule(f"a whole number from {least} to {most}", lambda v: type(v) is int and least <= v <= most)


def _number(least: float, most: float, *, above: bool = False) -> _Rule:
    words = f"above {least:g} and at most {most:g}" if above else f"from {least:g} to {most:g}"
    return _Rule(
        f"a number {words}",
        lambda v: type(v) in (int, float) and (least < v if above else least <= v) and v <= most,
    )


_RULES: Mapping[str, _Rule] = {
    "theme": _Rule("the name of a theme, in quotes", _text),
    "model": _Rule("a folder or a Hugging Face repo id, in quotes", _text),
    "scheme": _Rule(
        f"auto, or a cache scheme such as {', '.join(scheme.name for scheme in SCHEMES)}", _scheme
    ),
    "system_prompt": _Rule("a text in quotes", lambda v: isinstance(v, str)),
    "max_tokens": _whole(1, 1_000_000),
    "temperature": _number(0, 5),
    "top_p": _number(0, 1, above=True),
    "top_k": _whole(0, 1_000_000),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(0, 10, above=True),
    "seed": _whole(0, 2**63 - 1),
    "cache_budget": _number(0, 100_000, above=True),
    "keys": _Rule('a table of keys by action, such as scheme = "ctrl+k"', _texts),
}


def load(paths: Paths) -> Settings:
    """Read the user's settings; without a file, the defaults.

    Raises:
        SettingsError: if the file cannot be read or says what is not allowed; names file, key and what is.
    """
    file = paths.config_file
    values = _read(file)
    for key, value in values.items():
        if key not in _RULES:
            raise SettingsError(f"{file}: there is no setting {key!r}; {_nearest(key)}.")
        if (wanted := allowed(key, value)) is not None:
            raise SettingsError(f"{file}: {key} is {_shown(value)}, but must be {wanted}.")
    return Settings(**values)


def allowed(key: str, value: object) -> str | None:
    """What a setting may be, if this value is not: completes the sentence "it must be ..."."""
    rule = _RULES[key]
    return None if rule.accepts(value) else rule.allowed


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is not valid TOML: {error}.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} is not UTF-8 text; save it as UTF-8.") from error
    except OSError as error:
        raise SettingsError(f"{file} cannot be read ({(error.strerror or str(error)).lower()}).") from error


def _nearest(key: str) -> str:
    close = difflib.get_close_matches(key, _RULES, n=1)
    return f"the nearest is {close[0]!r}" if close else f"the settings are {', '.join(_RULES)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class State:
    """What the app remembers between runs. Nothing here matters enough to stop for.

    Attributes:
        conversation: Id of the conversation that was open last.
        theme: Theme chosen in the app, which goes before the one in ``config.toml``.
        sidebar: Whether the list of conversations is shown where there is room.
        gauge: Whether the gauge panel is.
    """

    conversation: str | None = None
    theme: str | None = None
    sidebar: bool = True
    gauge: bool = True

    @classmethod
    def load(cls, paths: Paths) -> State:
        """Read the state; what is missing or damaged is as on the first run."""
        try:
            values = tomllib.loads(paths.state_file.read_text("utf-8"))
        except (OSError, ValueError):
            return cls()
        known: dict[str, Any] = {k: v for k, v in values.items() if type(v) is _STATE_KINDS.get(k)}
        return cls(**known)

    def save(self, paths: Paths) -> bool:
        """Write the state; ``False`` if that could not be done, which costs no more than the memory of it."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        try:
            make_private_folder(paths.state_dir)
            write_atomically(paths.state_file, tomli_w.dumps(values).encode())
        except (OSError, TqchatError):
            return False
        return True


_STATE_KINDS: Mapping[str, type] = {"conversation": str, "theme": str, "sidebar": bool, "gauge": bool}
