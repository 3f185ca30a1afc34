"""All locations that tqchat reads or writes. ``TQCHAT_HOME`` moves them into one folder."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
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


class NoCurrentFolder(TqchatError):
    """The current folder was deleted, so that no relative name means anything and libraries fail to load."""

    def __init__(self) -> None:
        super().__init__("The current folder was deleted; change to another one with `cd` and try again.")


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
        home: The folder that holds all of the above, if ``TQCHAT_HOME`` names one.
    """

    config_dir: Path
    state_dir: Path
    data_dir: Path
    cache_dir: Path
    log_dir: Path
    home: Path | None = None

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

    @property
    def requests(self) -> Path:
        """Saved KV caches of requests by other programs."""
        return self.cache_dir / "requests"

    def ensure(self) -> list[str]:
        """Create the folders, accessible to their owner only.

        Returns:
            A sentence for each folder that cannot be used and that the app can do without.

        Raises:
            UnusableFolder: if conversations cannot be stored.
        """
        failed: dict[Path, UnusableFolder] = {}
        for folder in (
            self.config_dir,
            self.state_dir,
            self.data_dir,
            self.cache_dir,
            self.caches,
            self.log_dir,
        ):
            try:
                make_private_folder(folder)
            except UnusableFolder as error:
                failed[folder] = error
        if self.home is not None:
            self._restrict(self.home)
        if self.data_dir in failed:
            raise next(iter(failed.values()))
        if self.cache_dir in failed:
            failed.pop(self.caches, None)  # for the same reason
        lost = {
            self.config_dir: "no settings or themes are read",
            self.state_dir: "changes of settings are forgotten at the end",
            self.cache_dir: "caches are not saved",
            self.caches: "caches are not saved",
            self.log_dir: "no log is written",
        }
        return [f"{str(error).split('; ')[0]}: {lost[folder]}." for folder, error in failed.items()]

    def _restrict(self, home: Path) -> None:
        """Set the home's mode to 0700, unless it holds anything else, as the user's own home would."""
        own = {folder.name for folder in (self.config_dir, self.state_dir, self.data_dir, self.cache_dir)}
        with suppress(OSError, UnusableFolder):
            if {path.name for path in home.iterdir()} <= own | {self.log_dir.name}:
                make_private_folder(home)


def make_private_folder(folder: Path) -> None:
    """Create a folder and its missing parents with mode 0700, whatever the umask.

    An existing folder's mode is restricted to that; its parents stay as they are.

    Raises:
        UnusableFolder: if it cannot be created or changed.
    """
    try:
        missing = [folder] if not folder.exists() else []
        for parent in folder.parents if missing else ():
            if parent.exists():
                break
            missing.append(parent)
        for one in reversed(missing):
            one.mkdir(mode=0o700, exist_ok=True)
            one.chmod(0o700)
        if not stat.S_ISDIR(mode := folder.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        if stat.S_IMODE(mode) & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise UnusableFolder(folder, error) from error


def expand_user(path: str) -> Path:
    """A path that a user wrote, with ``~`` resolved; unchanged for a user that does not exist."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises where there is no home


def working_folder() -> Path:
    """The folder that relative paths begin at; ``.`` if it has been deleted, where nothing is found."""
    try:
        return Path.cwd()
    except OSError:
        return Path()


def locate() -> Paths:
    """This process's locations: in ``TQCHAT_HOME`` if set, else the platform's standard folders."""
    home = os.environ.get(HOME_VARIABLE)
    if home:
        root = working_folder() / expand_user(home)
        return Paths(root / "config", root / "state", root / "data", root / "cache", root / "logs", root)
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
