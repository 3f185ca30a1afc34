"""Loading a model: weights, tokenizer, sampling defaults and fingerprint."""

from tqchat.engine.models.loading import LoadedModel, load, load_folder

__all__ = ["LoadedModel", "load", "load_folder"]
