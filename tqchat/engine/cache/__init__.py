"""The live cache of one conversation: its tokens, its memory budget, and how it is saved and restored."""
