"""The engine's current model, and the LoRA adapter that it has."""

from __future__ import annotations

from pathlib import Path

from tqchat.engine import backend
from tqchat.engine.commands import model_ref
from tqchat.engine.models import adapters
from tqchat.engine.models.loading import FindProfile, LoadedModel, load_folder, with_adapter, without_adapter


class CurrentModel:
    """Loads models, and changes the adapter of the loaded one without loading its weights again.

    Args:
        adapter: Folder of the default adapter. It belongs to the first model that is asked for, and to no
            other.
        find_profile: Finds the quality profile of a model.

    Attributes:
        loaded: The model in memory. After ``use_adapter`` an earlier value must not be used any more.
    """

    def __init__(self, adapter: str | None = None, find_profile: FindProfile = lambda info: None) -> None:
        self._find_profile = find_profile
        self._default = adapter
        self._default_ref: str | None = None
        self._in_use: str | None = None
        self.loaded: LoadedModel | None = None

    def ask_for(self, ref: str | None) -> None:
        """A model will be loaded, perhaps after a download."""
        self._default_ref = self._default_ref or model_ref(ref)

    def load(self, ref: str | None, folder: Path) -> LoadedModel:
        """Load a model with its default adapter; the previous one stays if that fails.

        Raises:
            TqchatError: if it cannot be loaded.
        """
        wanted = self._wanted(None, model_ref(ref))
        try:
            self.loaded = load_folder(folder, ref, backend.prepare(), wanted, self._find_profile)
        except adapters.AdapterUnusable as error:
            raise adapters.AdapterUnusable(
                f"{error} It is named by --adapter or the setting adapter: change that and start again."
            ) from error
        self._in_use = wanted
        return self.loaded

    def has_adapter(self, choice: str | None) -> bool:
        """Whether the loaded model has the adapter that a conversation chose."""
        return self.loaded is not None and self._wanted(choice, self.loaded.info.ref) == self._in_use

    def use_adapter(self, choice: str | None) -> None:
        """Give the loaded model the adapter that a conversation chose, or none.

        The folder is read again, so that an adapter that was trained further meanwhile is noticed.

        Raises:
            AdapterUnusable: if it cannot be loaded or does not fit the model.
        """
        if self.loaded is None:
            return
        wanted = self._wanted(choice, self.loaded.info.ref)
        adapter = None if wanted is None else adapters.find(wanted)
        if adapter != self.loaded.adapter:
            self.loaded = without_adapter(self.loaded)
            self._in_use = None
            if adapter is not None:
                self.loaded = with_adapter(self.loaded, adapter)
        self._in_use = wanted

    def _wanted(self, choice: str | None, ref: str) -> str | None:
        return adapters.chosen(choice, self._default if ref == self._default_ref else None)
