"""tqchat: chat with local models in the terminal, over a TurboQuant-compressed KV cache."""

__version__ = "0.1.0"
