"""Details of the model under the cursor of the model picker."""

from __future__ import annotations

from textual.content import Content

from tqchat.engine.events import ModelEstimate, ModelProgress
from tqchat.engine.hub import recommended
from tqchat.engine.hub.catalog import LocalModel
from tqchat.engine.memory.cache_sizes import CacheSize, Verdict, cache_sizes, sizes_by_layer_kind
from tqchat.engine.memory.recommend import Suggestion
from tqchat.kv.scheme import Scheme
from tqchat.text import one_line
from tqchat.ui import figures
from tqchat.ui.screens.model_rows import ModelRow
from tqchat.ui.widgets.gauge.drawing import bar


def details(
    row: ModelRow,
    scheme: Scheme,
    estimate: ModelEstimate | None,
    loading: ModelProgress | None,
    brief: bool = False,
) -> list[Content]:
    """Lines about a model: its progress, problem or memory.

    Args:
        scheme: What caches are shown under, for a model on this machine.
        estimate: Of a model on this machine, once the engine has made it.
        loading: The model that is being downloaded or loaded.
        brief: Whether there is little room.
    """
    one = row.model
    if loading is not None and loading.ref == one.ref and loading.stage == "downloading":
        return _download(loading)
    if row.problem is not None:
        return [*_remote(row), Content.styled(one_line(row.problem), "$warning")]
    if one.folder is not None:
        return _local(one, scheme, estimate)
    if one.disk_bytes:
        return [Content(f"{figures.size(one.disk_bytes)} downloaded; the download can be resumed.")]
    if row.suggestion is not None:
        return _suggestion(row.suggestion, brief)
    if row.hit is not None and row.remote is None:
        return [Content.styled("Reading its configuration on Hugging Face…", "$quiet")]
    return [
        *_remote(row),
        Content("Downloads from Hugging Face into its cache, shared with other programs."),
        Content.styled(
            "You can keep chatting. Only weights and data files are fetched, never code.", "$quiet"
        ),
    ]


def _local(one: LocalModel, scheme: Scheme, estimate: ModelEstimate | None) -> list[Content]:
    place = "bundled with tqchat" if one.source == "bundled" else one_line(str(one.folder))
    where = Content.styled(f"{one.architecture} · {place}", "$quiet")
    if estimate is None:
        return [where, Content.styled("Estimating its memory…", "$quiet")]
    if estimate.problem is not None or estimate.shapes is None:
        return [where, Content.styled(f"! {one_line(estimate.problem or '')}", "$warning")]
    sizes = cache_sizes(estimate, scheme)
    parts = [
        f"{kind.layers} {kind.kind}{f' ({figures.short(kind.window)})' if kind.window else ''} "
        f"{figures.size(kind.bytes)}"
        for kind in sizes_by_layer_kind(estimate, sizes[-1].tokens, scheme)
    ]
    layers = Content.styled(f"layers: {' · '.join(parts)}", "$quiet")
    return [where, _weights(estimate, ""), *_caches(sizes, scheme.name), layers]


def _suggestion(one: Suggestion, brief: bool) -> list[Content]:
    model = one.model
    facts = f"{model.licence} · {model.parameters / 1e9:.1f}B parameters"
    note = [] if brief else [f"{model.note[0].upper()}{model.note[1:]}."]
    lines = [
        *(Content.styled(line, "$quiet") for line in (model.repo, facts, *note)),
        _weights(one.estimate, " free"),
        *_caches(one.sizes, f"auto: {one.scheme}"),
    ]
    if one.obstacle:
        return [*lines, Content.styled(f"! {one.obstacle.capitalize()} for this machine.", "$warning")]
    checked = f"Computed from its configuration, checked {recommended.checked()}."
    return [*lines, Content.styled(checked, "$quiet")]


def _remote(row: ModelRow) -> list[Content]:
    """Details of a model found on the hub."""
    if row.hit is None:
        return []
    facts = [row.ref, f"{figures.short(row.hit.downloads)} downloads"]
    if row.remote is not None:
        facts += [one_line(fact) for fact in (row.remote.licence, row.remote.architecture) if fact]
    return [Content.styled(" · ".join(facts), "$quiet")]


def _weights(estimate: ModelEstimate, which: str) -> Content:
    left = estimate.memory_bytes - estimate.weight_bytes
    return Content.assemble(
        f"Weights {figures.size(estimate.weight_bytes)} in memory",
        (f" of {figures.size(estimate.memory_bytes)}{which}", "$quiet"),
        (" · too large" if left <= 0 else "", "$error"),
    )


def _caches(sizes: list[CacheSize] | tuple[CacheSize, ...], scheme: str) -> list[Content]:
    """Caches of several lengths under a scheme and FP16, and whether they fit."""
    wide = max(10, len(scheme) + 2)
    lines = [Content.styled(f"{'cache at':>8}{scheme:>{wide}}{'':13}{'fp16':>10}", "$quiet")]
    for size in sizes:
        lines.append(
            Content.assemble(
                f"{figures.number(size.tokens):>8}{figures.size(size.bytes):>{wide}} ",
                _verdict(size.verdict),
                f"{figures.size(size.fp16_bytes):>10} ",
                _verdict(size.fp16_verdict),
            )
        )
    return lines


def _verdict(verdict: Verdict) -> tuple[str, str]:
    style = {"fits": "$success", "tight": "$warning", "does not fit": "$error"}[verdict]
    return f"{verdict:<12}", style


def _download(loading: ModelProgress) -> list[Content]:
    done, total = loading.done_bytes or 0, loading.total_bytes or 0
    if not total:
        return [Content("Listing its files on Hugging Face…")]
    return [
        Content.assemble(bar(done / total, 30), f"  {figures.size(done)} of {figures.size(total)}"),
        Content.styled("It is loaded when complete; you can keep chatting until then.", "$quiet"),
    ]
