"""Settings: ``config.toml``, written by the user, and ``state.toml``, written by the app."""

from tqchat.settings.config import Settings, SettingsError, load, load_config, read_config
from tqchat.settings.schema import SETTINGS, SETTINGS_BY_NAME, Setting, violation
from tqchat.settings.state import State

__all__ = [
    "SETTINGS",
    "SETTINGS_BY_NAME",
    "Setting",
    "Settings",
    "SettingsError",
    "State",
    "load",
    "load_config",
    "read_config",
    "violation",
]
