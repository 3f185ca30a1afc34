"""Requests of other programs: answered by the engine beside the conversation, with caches of their own."""
