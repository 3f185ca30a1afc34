"""Every location that tqchat reads or writes. ``TQCHAT_HOME`` puts all of them below one folder."""

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
    """A folder that tqchat needs cannot be made or entered."""

    def __init__(self, folder: Path, error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        super().__init__(
            f"The folder {folder} cannot be used ({reason}); "
            f"make it writable or set {HOME_VARIABLE} to another one."
        )


class MissingResource(TqchatError):
    """The installation lacks a file that is shipped with it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"This installation has no {name!r} files; install tqchat again.")


@dataclass(frozen=True)
class Paths:
    """Where things are. Nothing is created by looking.

    ``config_dir`` is the user's and never written by the app, ``state_dir`` the app's own; ``data_dir``
    holds what must not be lost, ``cache_dir`` what can be deleted at any time.
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
        """What the app remembers between runs."""
        return self.state_dir / "state.toml"

    @property
    def database(self) -> Path:
        """Conversations and messages."""
        return self.data_dir / "tqchat.db"

    @property
    def presets(self) -> Path:
        """The user's own presets of sampling and system prompt."""
        return self.data_dir / "presets.toml"

    @property
    def caches(self) -> Path:
        """Compressed caches, one folder for each conversation."""
        return self.cache_dir / "conversations"

    def ensure(self) -> None:
        """Make the folders, readable by their owner only.

        Raises:
            UnusableFolder: if one cannot be made.
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
    """Make a folder (and its parents) with mode 0700; a looser one that exists is tightened.

    Raises:
        UnusableFolder: if that cannot be done.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise UnusableFolder(folder, error) from error


def locate() -> Paths:
    """The locations for this process: below ``TQCHAT_HOME`` if that is set, else the platform's own."""
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
    """A folder or file shipped with tqchat: inside the package once installed, beside it in a checkout.

    Raises:
        MissingResource: if it is in neither place.
    """
    for root in (_PACKAGE, _PACKAGE.parent):
        place = root / _RESOURCES[name]
        if place.exists():
            return place
    raise MissingResource(name)
