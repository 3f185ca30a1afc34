"""Presets: named sampling settings with an optional system prompt, built in or saved by the user."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from tqchat.errors import TqchatError
from tqchat.files import write_atomically
from tqchat.paths import make_private_folder
from tqchat.store.sampling import SamplingChoice, parse

_NAME = re.compile(r"[\w-]{1,40}")


class BadPreset(TqchatError):
    """A preset does not exist, or cannot be saved."""


@dataclass(frozen=True)
class Preset:
    """Sampling for a conversation and, if set, its system prompt."""

    sampling: SamplingChoice
    system_prompt: str | None = None

    @property
    def summary(self) -> str:
        """``temperature 0.2, top p 0.9; Answer briefly.``"""
        said = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in self.sampling.given.items())
        prompt = " ".join((self.system_prompt or "").split())
        return "; ".join(part for part in (said, prompt[:60]) if part) or "all values from the settings"


BUILT_IN: Mapping[str, Preset] = {
    "default": Preset(SamplingChoice()),
    "precise": Preset(SamplingChoice(temperature=0.0)),
    "balanced": Preset(SamplingChoice(temperature=0.7, top_p=0.9)),
    "creative": Preset(SamplingChoice(temperature=1.0, top_p=0.95, min_p=0.05)),
}


class Presets:
    """The built-in presets and those in the user's file, which may also be edited by hand."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def all(self) -> dict[str, Preset]:
        """All presets by name, built-in ones first. Invalid entries of the file are left out."""
        return {**BUILT_IN, **self._own()}

    def get(self, name: str) -> Preset:
        """The preset of that name.

        Raises:
            BadPreset: if there is none.
        """
        found = self.all()
        if name not in found:
            raise BadPreset(f"There is no preset {name!r}; there are {', '.join(found)}.")
        return found[name]

    def save(self, name: str, preset: Preset) -> None:
        """Save a preset; replaces one of the user's own with this name.

        Raises:
            BadPreset: if the name is invalid or built in, or the file cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise BadPreset("A preset's name has letters, digits, - and _, at most 40.")
        if name in BUILT_IN:
            raise BadPreset(f"{name} is built in; choose another name.")
        self._write({**self._own(), name: preset})

    def delete(self, name: str) -> None:
        """Delete one of the user's own.

        Raises:
            BadPreset: if there is none of that name.
        """
        own = self._own()
        if name not in own:
            raise BadPreset(f"You have no preset called {name!r}.")
        del own[name]
        self._write(own)

    def _own(self) -> dict[str, Preset]:
        try:
            written = tomllib.loads(self._file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        found: dict[str, Preset] = {}
        for name, values in written.items():
            if not isinstance(values, dict) or name in BUILT_IN or not _NAME.fullmatch(name):
                continue
            prompt = values.pop("system_prompt", None)
            try:
                found[name] = Preset(parse(values), prompt if isinstance(prompt, str) else None)
            except TqchatError:
                continue
        return found

    def _write(self, own: Mapping[str, Preset]) -> None:
        tables = {
            name: preset.sampling.given
            | ({"system_prompt": preset.system_prompt} if preset.system_prompt else {})
            for name, preset in own.items()
        }
        try:
            make_private_folder(self._file.parent)
            write_atomically(self._file, tomli_w.dumps(tables).encode())
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise BadPreset(f"{self._file} cannot be written ({why}).") from error
