"""``tqchat models search``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tqchat.commands.models.output import BadRequest, print_json, print_problems, table

if TYPE_CHECKING:
    from tqchat.engine.hub.remote.search import Hit, RemoteModel


def search_hub(words: str, limit: int, as_json: bool) -> int:
    """Print what a search on the hub finds, and whether tqchat can load it.

    Raises:
        BadRequest: if the words are too short or the limit is out of range.
        SearchFailed: if the hub cannot be searched.
    """
    from tqchat.engine.hub.remote import search

    if len(words.strip()) < search.MIN_CHARS:
        raise BadRequest(f"Search for at least {search.MIN_CHARS} characters of a model's name.")
    if not 1 <= limit <= 2 * search.MAX_HITS:
        raise BadRequest(f"--limit is {limit}, but must be a whole number from 1 to {2 * search.MAX_HITS}.")
    hits = search.search(words)[:limit]
    about = {one.repo: one for one in search.inspect_all([hit.repo for hit in hits])}
    if as_json:
        print_json([_hit_json(hit, about.get(hit.repo)) for hit in hits])
    elif hits:
        head = ["model", "download", "format", "context", "downloads", "licence", "loads"]
        print(table([head, *(_hit_row(hit, about.get(hit.repo)) for hit in hits)], right=(1, 3, 4)))
        print_problems(about[hit.repo].problem for hit in hits if hit.repo in about)
    else:
        print("Nothing was found.")
    return 0 if hits else 1


def _hit_row(hit: Hit, one: RemoteModel | None) -> list[str]:
    from tqchat.ui import figures

    downloads = figures.short(hit.downloads)
    if one is None:
        return [hit.repo, "", "", "", downloads, "", "unknown"]
    return [
        hit.repo,
        "" if one.bytes is None else figures.size(one.bytes),
        one.quantisation,
        figures.short(one.context_limit) if one.context_limit else "",
        downloads,
        one.licence,
        "yes" if one.problem is None else "no",
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
