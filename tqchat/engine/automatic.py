"""``auto`` for a model: its profile, its shapes and the memory beside its weights, put to the chooser.

Pure Python: ``run`` and the app ask the same question here, before the first message as well as later.
"""

from __future__ import annotations

from tqchat.engine import chooser
from tqchat.engine.events import ModelInfo
from tqchat.engine.profile import Profile
from tqchat.kv.scheme import AUTO


def choose(
    model: ModelInfo | None, profile: Profile | None, *, held: int = 0, budget: int | None = None
) -> chooser.Choice:
    """The scheme for a conversation, and why.

    Args:
        model: What is known of the loaded model, ``None`` while there is none.
        profile: What was measured on it, if it was.
        held: Tokens that the conversation holds so far.
        budget: Bytes that its cache may take, where a person said so; else what the model leaves.
    """
    if model is None:
        return chooser.resolve_scheme(AUTO, profile=profile, budget=budget)
    return chooser.resolve_scheme(
        AUTO,
        profile=profile,
        shapes=model.shapes,
        budget=model.cache_budget if budget is None else budget,
        expected_tokens=chooser.expected_tokens(held, model.context_limit),
    )
