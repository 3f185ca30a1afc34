"""``tqchat cache``: the saved caches, what they take, and how to be rid of them."""

from __future__ import annotations

import argparse
import sys
import time

from tqchat import paths, settings
from tqchat.commands.listing import SHORT_ID, UNTITLED
from tqchat.errors import TqchatError
from tqchat.store.database import Conversation, Database
from tqchat.store.vault import Vault
from tqchat.store.vault.budget import GIB, Entry, described
from tqchat.text import one_line


class NotAsked(TqchatError):
    """Nobody is there to answer whether everything should go."""

    exit_code = 2


def main(options: argparse.Namespace) -> int:
    """Run the command below ``cache`` and return its exit code."""
    places = paths.locate()
    vault = Vault(places.caches, settings.load(places).cache_budget)
    known = _conversations()
    match options.cache_command:
        case "prune":
            return _prune(vault, known, dry_run=options.dry_run)
        case "wipe":
            return _wipe(vault, asked=options.yes)
        case _:
            return _list(vault, known)


def _list(vault: Vault, known: dict[str, Conversation]) -> int:
    entries = vault.entries()
    if not entries:
        print("No caches are saved.")
        return 0
    for entry in reversed(entries):
        print(_line(entry, known))
    total = sum(entry.bytes for entry in entries)
    print(f"\n{_size(total)} of {_size(vault.limit())}")
    return 0


def _prune(vault: Vault, known: dict[str, Conversation], *, dry_run: bool) -> int:
    orphans = [entry for entry in vault.entries() if known and entry.conversation not in known]
    keep = [*_in_use(known), *(entry.conversation for entry in orphans)]
    chosen = orphans + vault.to_prune(keep, -sum(entry.bytes for entry in orphans))
    for entry in chosen:
        line = _line(entry, known)
        if not dry_run:
            vault.forget(entry.conversation)
        print(line)
    total = _size(sum(entry.bytes for entry in chosen))
    verb = "would be removed" if dry_run else "removed"
    print(f"{total} {verb}." if chosen else "Nothing is over the budget.")
    return 0


def _wipe(vault: Vault, *, asked: bool) -> int:
    entries = vault.entries()
    total = _size(sum(entry.bytes for entry in entries))
    if entries and not asked:
        if not sys.stdin.isatty():
            raise NotAsked("Nobody is there to ask; say --yes to remove all saved caches.")
        answer = input(f"Remove {len(entries)} saved caches ({total})? Conversations stay. [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            print("Nothing was removed.")
            return 1
    for entry in entries:
        vault.forget(entry.conversation)
    print(f"{total} removed." if entries else "No caches are saved.")
    return 0


def _conversations() -> dict[str, Conversation]:
    file = paths.locate().database
    if not file.exists():
        return {}
    with Database(file) as database:
        return {one.id: one for one in (*database.conversations(), *database.deleted())}


def _in_use(known: dict[str, Conversation]) -> list[str]:
    """The conversations that some process has open."""
    file = paths.locate().database
    if not file.exists():
        return []
    with Database(file) as database:
        return [one for one in known if database.leases.holder(one) is not None]


def _line(entry: Entry, known: dict[str, Conversation]) -> str:
    entry = described(entry)
    one = known.get(entry.conversation)
    title = "(no such conversation)" if one is None else one_line(one.title) or UNTITLED
    about = (
        f"{entry.tokens:>9,} tokens  {entry.scheme:<9}" if entry.scheme else f"{'unfinished':>16}  {'':<9}"
    )
    age = _age(time.time() - entry.used_at)
    return f"{entry.conversation[:SHORT_ID]}  {_size(entry.bytes):>9}  {about}  {age:>8}  {title}"


def _size(count: int) -> str:
    for unit, factor in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "now"
