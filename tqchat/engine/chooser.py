"""``auto``: which scheme a conversation gets, and why in one line. Pure Python, no MLX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tqchat.engine.profile import Profile
from tqchat.kv.memory import LayerReport, MemoryReport, predict_bytes
from tqchat.kv.scheme import AUTO, SCHEMES, scheme_setting

KLD_LIMIT = 0.002
"""Nats a token, on average, that a scheme chosen from a profile may differ from the FP16 cache.

On the bundled model that changes the likeliest next token one time in thirty, and perplexity by 0.2 %."""

CAREFUL = ("turbo0v4", "turbo8v4", "turbo4", "turbo3", "turbo2")
"""What an unmeasured model gets: the first that fits.

Values come first because their error averages out on every model; keys at few bits are where models break.
"""

SHARE_OF_FREE = 0.5
"""The share of the memory beside the weights that a conversation's cache may take: attention's temporaries,
other conversations and, where memory is shared, other programs need the rest."""

SHORTEST_EXPECTED = 8192

WINDOW = 4096
"""How far layers are taken to grow whose window a report does not tell."""


@dataclass(frozen=True)
class Choice:
    """A scheme, and why it was chosen, in one line."""

    scheme: str
    reason: str


def resolve_scheme(
    name: str,
    *,
    profile: Profile | None = None,
    shapes: MemoryReport | None = None,
    budget: int | None = None,
    expected_tokens: int = SHORTEST_EXPECTED,
) -> Choice:
    """The scheme that a conversation's setting stands for: a name as it is, ``auto`` as chosen here.

    Args:
        name: A scheme's name, or ``auto``.
        profile: What was measured on this model, if it was.
        shapes: A report on any cache of this model that holds a token (``estimate.cache_shapes``).
        budget: Bytes that the cache may take; ``None`` if unknown.
        expected_tokens: How long the conversation is expected to become.

    Raises:
        UnknownScheme: if ``name`` is neither.
    """
    scheme = scheme_setting(name)
    if scheme != AUTO:
        return Choice(scheme, f"{scheme}: chosen for this conversation.")
    needs = {} if shapes is None else needed_bytes(shapes, expected_tokens)
    return choose(profile, budget, needs, expected_tokens)


def choose(
    profile: Profile | None, budget: int | None, needs: Mapping[str, int], expected_tokens: int
) -> Choice:
    """The scheme for a model under a memory budget.

    On a measured model it is the smallest whose KLD stays within ``KLD_LIMIT``; if the budget is too small
    for that, the best that fits. On any other it is the first of ``CAREFUL`` that fits. Where nothing fits it
    is the smallest.

    Args:
        needs: Bytes at ``expected_tokens``, by scheme; a scheme that is not in it counts as fitting.
    """

    def fits(scheme: str) -> bool:
        return budget is None or needs.get(scheme, 0) <= budget

    room = _room(budget, expected_tokens)
    rows = [] if profile is None else [row for row in profile.rows if _known(row.scheme)]
    if not rows:
        return _careful(fits, needs, room)
    good = [row for row in rows if row.kld_mean <= KLD_LIMIT and fits(row.scheme)]
    if good:
        row = min(good, key=lambda row: (needs.get(row.scheme, row.bytes), row.kld_mean))
        if row.scheme == "fp16":
            return Choice("fp16", f"fp16: on this model every other scheme measured above {KLD_LIMIT} nats.")
        why = f"the smallest within {KLD_LIMIT} nats of FP16, measured on this model at {row.kld_mean:.2g}"
        return Choice(row.scheme, f"{row.scheme}: {why}{room}.")
    fitting = [row for row in rows if fits(row.scheme)]
    if fitting:
        row = min(fitting, key=lambda row: row.kld_mean)
        why = f"the closest to FP16 that fits{room}, though measured at {row.kld_mean:.2g} nats"
        return Choice(row.scheme, f"{row.scheme}: {why} on this model.")
    row = min(rows, key=lambda row: needs.get(row.scheme, row.bytes))
    return Choice(row.scheme, f"{row.scheme}: the smallest, and even that does not fit{room}.")


def needed_bytes(shapes: MemoryReport, tokens: int) -> dict[str, int]:
    """What ``tokens`` tokens would take under each listed scheme, from the layers of a shorter cache."""
    longer = stretched(shapes, tokens)
    return {scheme.name: predict_bytes(longer, scheme) for scheme in SCHEMES}


def stretched(shapes: MemoryReport, tokens: int) -> MemoryReport:
    """The layers of a shorter cache at ``tokens`` tokens, for ``predict_bytes``."""
    return replace(shapes, tokens=tokens, layers=tuple(_stretched(layer, tokens) for layer in shapes.layers))


def memory_budget(device_bytes: int, weight_bytes: int, configured: int | None = None) -> int:
    """Bytes that a conversation's cache may take: what the person allows, else a share of what weights
    leave.
    """
    if configured is not None:
        return configured
    return int(max(0, device_bytes - weight_bytes) * SHARE_OF_FREE)


def expected_tokens(held: int, context_limit: int | None) -> int:
    """How long a conversation of ``held`` tokens is expected to become: twice that, no less than 8,192."""
    expected = max(SHORTEST_EXPECTED, 2 * held)
    return expected if context_limit is None else min(expected, max(context_limit, held))


def _careful(fits: Callable[[str], bool], needs: Mapping[str, int], room: str) -> Choice:
    unmeasured = "this model has not been measured (`tqchat lab profile` does)"
    first = next((scheme for scheme in CAREFUL if fits(scheme)), None)
    if first is None:
        first = min(CAREFUL, key=lambda scheme: needs.get(scheme, 0))
        return Choice(first, f"{first}: the smallest, and even that does not fit{room}; {unmeasured}.")
    if first == CAREFUL[0]:
        return Choice(first, f"{first}: {unmeasured}, and values alone can be compressed safely on any.")
    return Choice(first, f"{first}: the most careful that fits{room}; {unmeasured}.")


def _stretched(layer: LayerReport, tokens: int) -> LayerReport:
    if layer.reason is None or layer.window is not None:
        return replace(layer, tokens=tokens)
    if not layer.tokens:
        return layer
    count = min(tokens, WINDOW) if layer.kind == "sliding" else tokens
    return replace(layer, tokens=count, bytes=layer.bytes * count // layer.tokens)


def _known(scheme: str) -> bool:
    return any(scheme == known.name for known in SCHEMES)


def _room(budget: int | None, tokens: int) -> str:
    return "" if budget is None else f" in {_size(budget)} at {tokens:,} tokens"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
