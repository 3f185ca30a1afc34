"""Scheme ``auto``: the choice of a scheme and its reason in one line. Pure Python, no MLX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tqchat.engine.events import ModelInfo
from tqchat.engine.memory.budget import MIN_EXPECTED_TOKENS, expected_tokens
from tqchat.engine.memory.quality_profile import Profile
from tqchat.engine.memory.shapes import bytes_by_scheme
from tqchat.kv.memory import MemoryReport
from tqchat.kv.scheme import AUTO, SCHEMES, scheme_setting
from tqchat.units import size

KLD_LIMIT = 0.001
"""Largest mean KLD, in nats per token, of a scheme chosen from a profile."""

SAFEST_FIRST = ("turbo0v4", "turbo8v4", "turbo4", "turbo3", "turbo2")
"""Schemes by falling quality and size. Values are compressed first because their error averages out on every
model; low-bit keys are where models break."""

UNMEASURED = "turbo4"
"""The smallest scheme that stayed within ``UNMEASURED_LIMIT`` on every model in ``CODEC.md``."""

UNMEASURED_LIMIT = 0.002


@dataclass(frozen=True)
class SchemeChoice:
    """A scheme, and why it was chosen, in one line."""

    scheme: str
    reason: str


def choose_for_model(
    model: ModelInfo | None, profile: Profile | None, *, tokens: int = 0, budget: int | None = None
) -> SchemeChoice:
    """What ``auto`` means for a conversation.

    Args:
        model: The loaded model, ``None`` before one is loaded.
        profile: The model's quality profile, if it was measured.
        tokens: Current length of the conversation.
        budget: Bytes that its cache may take if configured; by default the model's memory budget.
    """
    if model is None:
        return resolve_scheme(AUTO, profile=profile, budget=budget)
    return resolve_scheme(
        AUTO,
        profile=profile,
        shapes=model.shapes,
        budget=model.memory_budget if budget is None else budget,
        expected=expected_tokens(tokens, model.context_limit),
        on_cpu=model.device.startswith("cpu"),
    )


def resolve_scheme(
    name: str,
    *,
    profile: Profile | None = None,
    shapes: MemoryReport | None = None,
    budget: int | None = None,
    expected: int = MIN_EXPECTED_TOKENS,
    on_cpu: bool = False,
) -> SchemeChoice:
    """The scheme that a conversation's setting stands for: ``auto`` is resolved, other names are kept.

    Args:
        name: A scheme's name, or ``auto``.
        profile: The model's quality profile, if it was measured.
        shapes: Report on any cache of this model that is not empty (``shapes.cache_shapes``).
        budget: Bytes that the cache may take; ``None`` if unknown.
        expected: Expected length of the conversation in tokens.
        on_cpu: Whether the model runs on a CPU, where trellis codes are slower than scalar ones.

    Raises:
        UnknownScheme: if ``name`` is neither.
    """
    scheme = scheme_setting(name)
    if scheme != AUTO:
        return SchemeChoice(scheme, f"{scheme}: chosen for this conversation.")
    needs = {} if shapes is None else bytes_by_scheme(shapes, expected)
    return choose(profile, budget, needs, expected, on_cpu)


def choose(
    profile: Profile | None,
    budget: int | None,
    needs: Mapping[str, int],
    expected: int,
    on_cpu: bool = False,
) -> SchemeChoice:
    """The scheme for a model under a memory budget.

    With a profile: the smallest scheme within ``KLD_LIMIT`` that fits, else the most accurate that fits.
    Without one: ``UNMEASURED``, or the next smaller that fits. If nothing fits: the smallest.

    Args:
        needs: Bytes at ``expected`` tokens, by scheme; a scheme that is missing counts as fitting.
        expected: Expected length of the conversation in tokens.
        on_cpu: Leave out trellis codes, which are slower than scalar ones of the same size on a CPU.
    """

    def fits(scheme: str) -> bool:
        return budget is None or needs.get(scheme, 0) <= budget

    constraint = _constraint(budget, expected)
    rows = [] if profile is None else [row for row in profile.rows if _is_eligible(row.scheme, on_cpu)]
    if not rows:
        return _choose_unmeasured(fits, needs, constraint)
    good = [row for row in rows if row.kld_mean <= KLD_LIMIT and fits(row.scheme)]
    if good:
        row = min(good, key=lambda row: (needs.get(row.scheme, row.bytes), row.kld_mean))
        if row.scheme == "fp16":
            return SchemeChoice(
                "fp16", f"fp16: on this model every other scheme measured above {KLD_LIMIT} nats."
            )
        why = f"the smallest within {KLD_LIMIT} nats of FP16, measured on this model ({row.kld_mean:.2g})"
        return SchemeChoice(row.scheme, f"{row.scheme}: {why}.")
    fitting = [row for row in rows if fits(row.scheme)]
    if fitting:
        row = min(fitting, key=lambda row: row.kld_mean)
        why = f"the closest to FP16 that fits{constraint}, though measured at {row.kld_mean:.2g} nats"
        return SchemeChoice(row.scheme, f"{row.scheme}: {why} on this model.")
    row = min(rows, key=lambda row: needs.get(row.scheme, row.bytes))
    return SchemeChoice(row.scheme, f"{row.scheme}: the smallest, and even that does not fit{constraint}.")


def _choose_unmeasured(
    fits: Callable[[str], bool], needs: Mapping[str, int], constraint: str
) -> SchemeChoice:
    unmeasured = "this model has not been measured (`tqchat lab profile` does)"
    schemes = SAFEST_FIRST[SAFEST_FIRST.index(UNMEASURED) :]
    first = next((scheme for scheme in schemes if fits(scheme)), None)
    if first is None:
        first = min(schemes, key=lambda scheme: needs.get(scheme, 0))
        return SchemeChoice(
            first, f"{first}: the smallest, and even that does not fit{constraint}; {unmeasured}."
        )
    if first == UNMEASURED:
        why = f"the smallest within {UNMEASURED_LIMIT} nats of FP16 on all models tried"
        return SchemeChoice(first, f"{first}: {why}; {unmeasured}.")
    return SchemeChoice(first, f"{first}: the most careful that fits{constraint}; {unmeasured}.")


def _is_eligible(name: str, on_cpu: bool) -> bool:
    scheme = next((listed for listed in SCHEMES if listed.name == name), None)
    return scheme is not None and not (on_cpu and "trellis" in (scheme.key.kind, scheme.value.kind))


def _constraint(budget: int | None, tokens: int) -> str:
    return "" if budget is None else f" into {size(budget)} at {tokens:,} tokens"
