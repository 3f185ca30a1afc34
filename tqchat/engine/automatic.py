"""``auto`` for a loaded model: its profile, its shapes and the memory beside its weights, put to the
chooser.
"""

from __future__ import annotations

from tqchat.engine import backend, chooser, profile
from tqchat.engine.models import LoadedModel
from tqchat.kv.scheme import AUTO
from tqchat.paths import Paths


def choose(model: LoadedModel, paths: Paths, held: int = 0) -> chooser.Choice:
    """The scheme for a conversation that holds ``held`` tokens so far, and why.

    Must run on the thread that owns the model.
    """
    memory = backend.prepare().memory_bytes
    return chooser.resolve_scheme(
        AUTO,
        profile=profile.load(paths, model.info.fingerprint),
        shapes=profile.probe(model),
        budget=chooser.memory_budget(memory, model.info.weight_bytes),
        expected_tokens=chooser.expected_tokens(held, model.context_limit),
    )
