"""Presets: named sampling settings with an optional system prompt, built in or saved by the user."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqchat.errors import TqchatError
from tqchat.files import NotWritten, Unreadable, read_toml, update_toml
from tqchat.paths import make_private_folder
from tqchat.store.sampling import SamplingChoice, violation
from tqchat.text import shown_value

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
    """The built-in presets and those in the user's file, which may also be edited by hand.

    What the file holds besides presets, and what of a preset this version does not know, is kept as it is.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def all(self) -> dict[str, Preset]:
        """All presets by name, built-in ones first. Of an entry of the file, what cannot be used is left out.

        A file that cannot be read has none; ``problem`` says why.
        """
        try:
            return {**BUILT_IN, **self._own()}
        except Unreadable:
            return dict(BUILT_IN)

    def problem(self) -> str | None:
        """Why the presets of the file cannot be used, or some values of them."""
        try:
            table = read_toml(self._file)
        except FileNotFoundError:
            return None
        except Unreadable as error:
            return str(error)
        unused = [
            f"{name}.{key}"
            for name, values in table.items()
            if _is_preset(name, values)
            for key in values
            if key != "system_prompt" and not _is_sampling(key, values[key])
        ]
        names = shown_value(", ".join(unused[:8]), 200)
        return f"{self._file} has values that cannot be used: {names}." if unused else None

    def get(self, name: str) -> Preset:
        """The preset of that name.

        Raises:
            BadPreset: if there is none.
        """
        found = self.all()
        if name not in found:
            problem = self.problem()
            raise BadPreset(
                f"There is no preset {name[:40]!r}; there are {', '.join(found)}."
                + (f" {problem}" if problem else "")
            )
        return found[name]

    def save(self, name: str, preset: Preset) -> Path | None:
        """Save a preset; replaces one of the user's own with this name.

        Returns:
            The copy of the file that was made because it was edited by hand.

        Raises:
            BadPreset: if the name is invalid or built in, or the file cannot be read or written.
        """
        if not _NAME.fullmatch(name):
            raise BadPreset("A preset's name has letters, digits, - and _, at most 40.")
        if name in BUILT_IN:
            raise BadPreset(f"{name} is built in; choose another name.")
        values: dict[str, Any] = dict(preset.sampling.given)
        if preset.system_prompt:
            values["system_prompt"] = preset.system_prompt

        def put(table: dict[str, Any]) -> None:
            old = table.get(name)
            unknown = (
                {key: value for key, value in old.items() if not _is_known(key)}
                if isinstance(old, dict)
                else {}
            )
            table[name] = unknown | values

        return self._change(put)

    def delete(self, name: str) -> Path | None:
        """Delete one of the user's own; returns the copy of the file, if one was made.

        Raises:
            BadPreset: if there is none of that name, or the file cannot be read or written.
        """

        def drop(table: dict[str, Any]) -> None:
            if not _is_preset(name, table.get(name)):
                raise BadPreset(f"You have no preset called {name[:40]!r}.")
            del table[name]

        return self._change(drop)

    def _own(self) -> dict[str, Preset]:
        try:
            written = read_toml(self._file)
        except FileNotFoundError:
            return {}
        own = {name: _preset(values) for name, values in written.items() if _is_preset(name, values)}
        return {name: preset for name, preset in own.items() if preset is not None}

    def _change(self, change: Callable[[dict[str, Any]], object]) -> Path | None:
        try:
            make_private_folder(self._file.parent)
            return update_toml(self._file, change)
        except Unreadable as error:
            raise _not_changed(error) from error
        except NotWritten as error:
            raise BadPreset(str(error)) from error


def _not_changed(error: Unreadable) -> BadPreset:
    return BadPreset(f"Nothing was changed: {error} Correct that first.")


def _is_preset(name: str, values: object) -> bool:
    return isinstance(values, dict) and name not in BUILT_IN and bool(_NAME.fullmatch(name))


def _is_known(key: str) -> bool:
    return key == "system_prompt" or key in SamplingChoice.__dataclass_fields__


def _is_sampling(key: str, value: object) -> bool:
    return key in SamplingChoice.__dataclass_fields__ and violation(key, value) is None


def _preset(values: Mapping[str, Any]) -> Preset | None:
    """The usable part of a preset; ``None`` if no value can be used."""
    prompt = values.get("system_prompt")
    prompt = prompt if isinstance(prompt, str) else None
    sampling = {key: value for key, value in values.items() if _is_sampling(key, value)}
    return Preset(SamplingChoice(**sampling), prompt) if sampling or prompt or not values else None
