"""Commands on stored conversations: list, show, search, export, import, delete."""
