"""All locations that tqchat reads or writes. ``TQCHAT_HOME`` moves them into one folder."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from tqchat.errors import TqchatError

HOME_VARIABLE = "TQCHAT_HOME"

_PACKAGE = Path(__file__).resolve().parent
_RESOURCES = {
    "themes": Path("themes"),
    "starter": Path("assets", "starter"),
    "starter-profile": Path("assets", "starter-profile.json"),
}


class UnusableFolder(TqchatError):
    """A required folder cannot be created or accessed; ``error`` is the system's error."""

    def __init__(self, folder: Path, error: OSError) -> None:
        self.error = error
        reason = (error.strerror or str(error)).lower()
        super().__init__(
            f"The folder {folder} cannot be used ({reason}); "
            f"make it writable, or set {HOME_VARIABLE} to another folder."
        )


class MissingResource(TqchatError):
    """A bundled file is missing from the installation."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The installation is incomplete: its {name!r} files are missing. Reinstall tqchat.")


@dataclass(frozen=True)
class Paths:
    """Locations of files and folders. Reading a property creates nothing.

    Attributes:
        config_dir: The user's settings; never written by the app.
        state_dir: State of the app.
        data_dir: Conversations and presets, which cannot be regenerated.
        cache_dir: Saved caches, which can be deleted at any time.
    """

    config_dir: Path
    state_dir: Path
    data_dir: Path
    cache_dir: Path
    log_dir: Path

    @property
    def config_file(self) -> Path:
        """The user's settings."""
        return self.config_dir / "config.toml"

    @property
    def themes(self) -> Path:
        """The user's own themes."""
        return self.config_dir / "themes"

    @property
    def state_file(self) -> Path:
        """State of the app between runs."""
        return self.state_dir / "state.toml"

    @property
    def unsent_text(self) -> Path:
        """Text that was typed for a new conversation and not sent."""
        return self.state_dir / "unsent.txt"

    @property
    def database(self) -> Path:
        """The transcript database."""
        return self.data_dir / "tqchat.db"

    @property
    def presets(self) -> Path:
        """The user's presets of sampling and system prompt."""
        return self.data_dir / "presets.toml"

    @property
    def caches(self) -> Path:
        """Saved KV caches, one folder per conversation."""
        return self.cache_dir / "conversations"

    def ensure(self) -> None:
        """Create the folders, accessible to their owner only.

        Raises:
            UnusableFolder: if one cannot be created.
        """
        for folder in (
            self.config_dir,
            self.state_dir,
            self.data_dir,
            self.cache_dir,
            self.caches,
            self.log_dir,
        ):
            make_private_folder(folder)


def make_private_folder(folder: Path) -> None:
    """Create a folder and its parents with mode 0700; an existing folder's mode is restricted to that.

    Raises:
        UnusableFolder: if it cannot be created or changed.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise UnusableFolder(folder, error) from error


def locate() -> Paths:
    """This process's locations: in ``TQCHAT_HOME`` if set, else the platform's standard folders."""
    home = os.environ.get(HOME_VARIABLE)
    if home:
        root = Path(home).expanduser().absolute()
        return Paths(root / "config", root / "state", root / "data", root / "cache", root / "logs")
    dirs = platformdirs.PlatformDirs("tqchat", appauthor=False)
    return Paths(
        dirs.user_config_path,
        dirs.user_state_path,
        dirs.user_data_path,
        dirs.user_cache_path,
        dirs.user_log_path,
    )


def bundled(name: Literal["themes", "starter", "starter-profile"]) -> Path:
    """Path of a bundled folder or file: inside the installed package, beside it in a checkout.

    Raises:
        MissingResource: if it is in neither place.
    """
    for root in (_PACKAGE, _PACKAGE.parent):
        place = root / _RESOURCES[name]
        if place.exists():
            return place
    raise MissingResource(name)
