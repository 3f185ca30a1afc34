"""The laboratory: what a cache scheme costs on a model, measured in the decode path that the chat uses."""
