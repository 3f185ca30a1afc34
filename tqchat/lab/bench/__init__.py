"""``tqchat lab bench``: speed and memory of the caches, measured side by side on this machine."""
