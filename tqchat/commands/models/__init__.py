"""``tqchat models``: lists, finds, downloads and deletes models."""
