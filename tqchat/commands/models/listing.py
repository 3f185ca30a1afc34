"""``tqchat models list``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tqchat.commands.models.output import print_json, print_problems, table
from tqchat.text import one_line

if TYPE_CHECKING:
    from tqchat.engine.hub.catalog import LocalModel
    from tqchat.engine.memory.cache_sizes import CacheSize
    from tqchat.engine.memory.recommend import Suggestion


def list_models(as_json: bool) -> int:
    """Print models that suit this machine, then those on disk."""
    from tqchat import paths, settings
    from tqchat.engine.hub import catalog, recommended
    from tqchat.engine.memory import recommend

    machine = recommend.this_machine()
    found = recommend.suggestions(machine)
    local = catalog.scan(settings.load(paths.locate()).model_folders)
    here = {one.ref for one in local if one.folder is not None}
    if as_json:
        print_json(
            {
                "machine": {"name": machine.name, "free_bytes": machine.free_bytes},
                "checked": recommended.checked().isoformat(),
                "recommended": [_suggestion_json(one, here) for one in found],
                "local": [_local_json(one) for one in local],
            }
        )
        return 0
    from tqchat.ui import figures

    free = figures.size(machine.free_bytes)
    print(f"Recommended for this machine ({one_line(machine.name)}; {free} free)\n")
    rows = [
        ["model", "download", "in memory", "context", "8k: auto/fp16", "32k: auto/fp16", "licence", ""],
        *(_suggestion_row(one, here) for one in recommend.short_list(found)),
    ]
    print(table(rows, right=(1, 2, 3, 4, 5)))
    print(f"\nComputed from published configurations, checked {recommended.checked()}. On this machine:\n")
    print(table([["model", "size", "format", "context", ""], *map(_local_row, local)], right=(1, 3)))
    print_problems(one.problem for one in local)
    return 0


def _suggestion_row(one: Suggestion, here: set[str]) -> list[str]:
    from tqchat.ui import figures

    model = one.model
    return [
        model.repo,
        figures.size(model.bytes),
        figures.size(one.estimate.weight_bytes),
        figures.short(model.context),
        *(f"{figures.size(size.bytes)} / {figures.size(size.fp16_bytes)}" for size in one.sizes),
        model.licence,
        one.obstacle or ("on disk" if model.repo in here else ""),
    ]


def _suggestion_json(one: Suggestion, here: set[str]) -> dict[str, Any]:
    model = one.model
    return {
        "repo": model.repo,
        "licence": model.licence,
        "parameters": model.parameters,
        "bytes": model.bytes,
        "memory_bytes": one.estimate.weight_bytes,
        "context": model.context,
        "scheme": one.scheme,
        "cache": [_size_json(size) for size in one.sizes],
        "note": model.note,
        "obstacle": one.obstacle or None,
        "on_disk": model.repo in here,
    }


def _size_json(size: CacheSize) -> dict[str, Any]:
    return {
        "tokens": size.tokens,
        "bytes": size.bytes,
        "fp16_bytes": size.fp16_bytes,
        "verdict": size.verdict,
        "fp16_verdict": size.fp16_verdict,
    }


def _local_row(one: LocalModel) -> list[str]:
    from tqchat.ui import figures

    if one.problem is not None:
        state = "cannot be loaded"
    elif one.folder is None:
        state = "partial download; pull resumes it"
    else:
        state = "bundled" if one.source == "bundled" else str(one.folder) if one.source == "folder" else ""
    return [
        one.name,
        figures.size(one.disk_bytes) if one.disk_bytes else "",
        one.quantisation,
        figures.short(one.context_limit) if one.context_limit else "",
        state,
    ]


def _local_json(one: LocalModel) -> dict[str, Any]:
    return {
        "ref": one.ref,
        "source": one.source,
        "folder": None if one.folder is None else str(one.folder),
        "complete": one.folder is not None,
        "bytes": one.disk_bytes,
        "architecture": one.architecture,
        "quantisation": one.quantisation,
        "context": one.context_limit,
        "problem": one.problem,
    }
