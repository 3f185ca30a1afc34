"""``tqchat models``: lists, finds, downloads and deletes models."""

from __future__ import annotations

import argparse
import json
import sys
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from tqchat.errors import TqchatError
from tqchat.text import one_line

if TYPE_CHECKING:
    from pathlib import Path

    from tqchat.engine.hub.catalog import LocalModel
    from tqchat.engine.hub.remote.search import Hit, RemoteModel
    from tqchat.engine.memory.cache_sizes import CacheSize
    from tqchat.engine.memory.recommend import Suggestion

POLL_INTERVAL_S = 0.1
_REPO_HELP = "Hugging Face repo id: owner/name"
_LIST_EPILOG = """\
With --json one object is printed: machine (name, free_bytes), checked (date of the list),
recommended (all of them, with obstacle: why one does not suit this machine, or null) and local.
cache holds, for 8,192 and 32,768 tokens, the bytes under scheme (what auto picks) and under fp16."""


class BadRequest(TqchatError):
    """An argument that cannot be used, or a missing confirmation."""

    exit_code = 2


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``models`` to the commands."""
    summary = "list, find, download and delete models"
    models = commands.add_parser(
        "models", help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False
    )
    models.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    below = models.add_subparsers(dest="models_command", metavar="command", title="commands")
    listing = _add(below, "list", "list models that suit this machine, then those on disk (the default)")
    listing.epilog, listing.formatter_class = _LIST_EPILOG, argparse.RawDescriptionHelpFormatter
    search = _add(below, "search", "search the Hugging Face hub; exits 1 if nothing is found")
    search.add_argument("words", metavar="WORD", nargs="+", help="words of the model's name")
    search.add_argument(
        "--limit", metavar="N", type=int, default=12, help="maximum number of results (default: 12)"
    )
    pull = _add(below, "pull", "download a model; run again, it resumes where it stopped")
    pull.add_argument("repo", metavar="REPO", help=_REPO_HELP)
    remove = _add(below, "rm", "delete a model, or a part of one, from the Hugging Face cache")
    remove.add_argument("repo", metavar="REPO", help=_REPO_HELP)
    remove.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def _add(
    below: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str
) -> argparse.ArgumentParser:
    parser = below.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
    )
    # SUPPRESS keeps a --json that was given before the command.
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    return parser


def main(options: argparse.Namespace) -> int:
    """Run a subcommand of ``models`` and return its exit code."""
    match options.models_command:
        case "search":
            return _search(" ".join(options.words), options.limit, options.json)
        case "pull":
            return _pull(options.repo, options.json)
        case "rm":
            return _remove(options.repo, options.yes, options.json)
        case _:
            return _list(options.json)


def _list(as_json: bool) -> int:
    from tqchat import paths, settings
    from tqchat.engine.hub import catalog, recommended
    from tqchat.engine.memory import recommend

    machine = recommend.this_machine()
    found = recommend.suggestions(machine)
    local = catalog.scan(settings.load(paths.locate()).model_folders)
    here = {one.ref for one in local if one.folder is not None}
    if as_json:
        _print_json(
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
    print(_table(rows, right=(1, 2, 3, 4, 5)))
    print(f"\nComputed from published configurations, checked {recommended.checked()}. On this machine:\n")
    print(_table([["model", "size", "format", "context", ""], *map(_local_row, local)], right=(1, 3)))
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
        state = one.problem
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


def _search(words: str, limit: int, as_json: bool) -> int:
    from tqchat.engine.hub.remote import search

    if len(words.strip()) < search.MIN_CHARS:
        raise BadRequest(f"Search for at least {search.MIN_CHARS} characters of a model's name.")
    if not 1 <= limit <= 2 * search.MAX_HITS:
        raise BadRequest(f"--limit is {limit}, but must be a whole number from 1 to {2 * search.MAX_HITS}.")
    hits = search.search(words)[:limit]
    about = {one.repo: one for one in search.inspect_all([hit.repo for hit in hits])}
    if as_json:
        _print_json([_hit_json(hit, about.get(hit.repo)) for hit in hits])
    elif hits:
        head = ["model", "download", "format", "context", "downloads", "licence", ""]
        print(_table([head, *(_hit_row(hit, about.get(hit.repo)) for hit in hits)], right=(1, 3, 4)))
    else:
        print("Nothing was found.")
    return 0 if hits else 1


def _hit_row(hit: Hit, one: RemoteModel | None) -> list[str]:
    from tqchat.ui import figures

    downloads = figures.short(hit.downloads)
    if one is None:
        return [hit.repo, "", "", "", downloads, "", "the hub says nothing of it"]
    return [
        hit.repo,
        "" if one.bytes is None else figures.size(one.bytes),
        one.quantisation,
        figures.short(one.context_limit) if one.context_limit else "",
        downloads,
        one.licence,
        one.problem or "",
    ]


def _hit_json(hit: Hit, one: RemoteModel | None) -> dict[str, Any]:
    return {
        "repo": hit.repo,
        "downloads": hit.downloads,
        "bytes": one and one.bytes,
        "architecture": one and one.architecture,
        "quantisation": one and one.quantisation,
        "context": one and one.context_limit,
        "licence": one and one.licence,
        "loads": None if one is None else one.problem is None,
        "problem": one and one.problem,
    }


def _pull(repo: str, as_json: bool) -> int:
    from tqchat.engine.hub import resolve

    _check_repo(repo)
    there = resolve.local_folder(repo)
    folder = there or _download(repo)
    if as_json:
        _print_json({"repo": repo, "folder": str(folder), "bytes": _weight_bytes(folder)})
    else:
        print(f"{repo} {'is now' if there is None else 'is already'} in {folder}.")
    return 0


def _download(repo: str) -> Path:
    """Download a model with progress on standard error, until a signal comes."""
    from tqchat.commands.interruption import Interruption
    from tqchat.commands.measuring import Progress
    from tqchat.engine.hub.remote.download_thread import DownloadThread, DownloadUpdate
    from tqchat.ui import figures

    updates: SimpleQueue[DownloadUpdate] = SimpleQueue()
    progress, download = Progress(), DownloadThread(repo, updates.put)
    # On a thread, because a request that gets no answer cannot be interrupted.
    with Interruption() as interruption:
        download.start()
        while True:
            try:
                update = updates.get(timeout=POLL_INTERVAL_S)
            except Empty:
                if interruption.stop.is_set():
                    download.cancel()
                continue
            if update.progress:
                done, total = download.progress
                progress(f"{figures.size(done)} of {figures.size(total)}", done, total)
                continue
            progress.end()
            if interruption.stop.is_set():
                print(f"tqchat: Run `tqchat models pull {repo}` again to resume.", file=sys.stderr)
            if update.error is not None:
                raise update.error
            assert update.folder is not None
            return update.folder


def _weight_bytes(folder: Path) -> int:
    from tqchat.engine.hub import model_folder

    return sum(file.stat().st_size for file in model_folder.weight_files(folder))


def _remove(repo: str, confirmed: bool, as_json: bool) -> int:
    from tqchat.engine.hub import disk_use, local_cache
    from tqchat.ui import figures

    _check_repo(repo)
    storage = next((folder for name, folder in local_cache.cached_repos() if name == repo), None)
    partial = storage is not None and local_cache.cached_folder(repo) is None
    if storage is not None and not confirmed:
        if as_json or not sys.stdin.isatty():
            raise BadRequest("Nothing can be asked here; pass --yes to delete the model.")
        size = figures.size(disk_use.storage_bytes(storage))
        shared = "the Hugging Face cache, which other programs use too"
        if input(f"Delete {repo} ({size}) from {shared}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("Nothing was deleted.")
            return 1
    if storage is not None and partial and local_cache.partial_bytes(storage):
        freed = disk_use.storage_bytes(storage)
        disk_use.check_deletable(repo, storage)
        local_cache.discard_partial(repo)
        freed -= disk_use.storage_bytes(storage)
    else:
        freed = disk_use.delete(repo)
    if as_json:
        _print_json({"repo": repo, "freed_bytes": freed})
    else:
        print(f"Deleted {repo}; {figures.size(freed)} are free again.")
    return 0


def _check_repo(repo: str) -> None:
    from tqchat.engine.hub import resolve

    if not resolve.is_repo_id(repo):
        raise BadRequest(f"{one_line(repo)!r} is no Hugging Face model id; one looks like owner/name.")


def _table(rows: list[list[str]], right: tuple[int, ...]) -> str:
    """Rows in columns; ``right`` are aligned to the right. The last column is as long as it is."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]) - 1)]
    lines = []
    for row in cells:
        aligned = [
            f"{cell:>{width}}" if column in right else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join([*aligned, row[-1]]).rstrip())
    return "\n".join(lines)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2))
