"""Measures a model's profile for ``auto``: every listed scheme on the built-in text.

``text.txt`` is from chapter 12 of Mark Twain's "The Prince and the Pauper" (1881), which is in the public
domain."""

from __future__ import annotations

from pathlib import Path

from tqchat.engine.memory import quality_profile
from tqchat.engine.memory.allocation import allocate
from tqchat.engine.memory.quality_profile import Profile, SchemeQuality
from tqchat.engine.memory.shapes import at_length, cache_shapes
from tqchat.engine.models import LoadedModel
from tqchat.engine.models.loading import ALLOCATION_TOKENS
from tqchat.kv.scheme import SCHEMES
from tqchat.lab import sensitivity
from tqchat.lab.candidates import Candidate
from tqchat.lab.evaluation import Dropped, Progress, evaluate
from tqchat.lab.reading import encode
from tqchat.lab.results import Row

MAX_TOKENS = 2048
"""Maximum tokens read; the built-in text has about 3,000."""

PREFILL_DIVISOR = 4
"""One token in four is read as the prompt."""


def measure(
    model: LoadedModel,
    *,
    tokens: int | None = None,
    one_by_one: bool | None = None,
    progress: Progress | None = None,
) -> tuple[Profile, list[Row], list[Dropped]]:
    """Measure the layers' sensitivities, then every listed scheme as the chat uses it: in its decode path,
    with bits allocated by them.

    Returns:
        The profile, the rows it was made from, and the schemes that could not be measured.

    Raises:
        NotFinite: if the model computes NaN.
    """
    text = (Path(__file__).parent / "text.txt").read_text(encoding="utf-8")
    limit = MAX_TOKENS if tokens is None else tokens
    if model.context_limit is not None:
        limit = min(limit, model.context_limit)
    ids = encode(model, text)[: limit + 1]
    found = sensitivity.measure(model, ids[:-1], progress or (lambda *_: None))
    shapes = at_length(model.info.shapes or cache_shapes(model.model), ALLOCATION_TOKENS)
    candidates = [Candidate(scheme.name, allocate(scheme, found, shapes)) for scheme in SCHEMES]
    rows, dropped = evaluate(
        model, candidates, ids, len(ids) // PREFILL_DIVISOR, one_by_one=one_by_one, progress=progress
    )
    measured = tuple(
        SchemeQuality(
            scheme=row.scheme,
            kld_mean=row.kld_mean,
            kld_p99=row.kld_p99,
            top1=row.top1,
            bytes=row.bytes,
            fp16_bytes=row.fp16_bytes,
            ratio=row.ratio,
        )
        for row in rows
    )
    made = Profile(
        model=model.info.label,
        fingerprint=model.info.fingerprint,
        codec=quality_profile.codec_version(),
        tokens=len(ids) - 1,
        rows=measured,
        sensitivity=found,
    )
    return made, rows, dropped
