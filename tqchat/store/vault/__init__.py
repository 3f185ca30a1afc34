"""Saved KV caches: one folder per conversation, with append-only segments and a manifest."""

from tqchat.store.vault.restore import Refused, Restored
from tqchat.store.vault.vault import SaveResult, Vault, VaultError

__all__ = ["Refused", "Restored", "SaveResult", "Vault", "VaultError"]
