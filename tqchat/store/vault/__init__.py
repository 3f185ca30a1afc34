"""Saved KV caches: one folder per conversation, with append-only segments and a manifest."""

from tqchat.store.vault.vault import Refused, Restored, Vault, VaultError, Written

__all__ = ["Refused", "Restored", "Vault", "VaultError", "Written"]
