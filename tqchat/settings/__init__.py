"""``config.toml``, which is the user's and only read, and ``state.toml``, which is the app's."""

from tqchat.settings.config import Settings, SettingsError, configured, load
from tqchat.settings.schema import BY_NAME, SETTINGS, Setting, allowed
from tqchat.settings.state import State

__all__ = [
    "BY_NAME",
    "SETTINGS",
    "Setting",
    "Settings",
    "SettingsError",
    "State",
    "allowed",
    "configured",
    "load",
]
