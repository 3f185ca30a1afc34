"""``tqchat cache``: lists, prunes and deletes saved caches."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tqchat import paths, settings
from tqchat.commands.conversations.listing import SHORT_ID, UNTITLED
from tqchat.commands.conversations.reading import open_for_reading
from tqchat.errors import TqchatError
from tqchat.store.database import Conversation, Database
from tqchat.store.vault import Vault
from tqchat.store.vault.budget import CacheEntry, with_manifest
from tqchat.text import one_line, single_line
from tqchat.units import size

MAX_LISTED = 20
UNKNOWN, REQUEST = "(no such conversation)", "(another program's request)"


class ConfirmationRequired(TqchatError):
    """Deleting everything needs a confirmation, and standard input is not a terminal."""

    exit_code = 2


def main(options: argparse.Namespace) -> int:
    """Run a subcommand of ``cache`` and return its exit code."""
    locations = paths.locate()
    vault = Vault(locations.caches, settings.load(locations).cache_budget)
    requests = vault.with_lesser(locations.requests)
    match options.cache_command:
        case "prune":
            return _prune(vault, requests, _conversations(), dry_run=options.dry_run)
        case "wipe":
            return _wipe(vault, requests, confirmed=options.yes)
        case _:
            return _list(vault, requests, _conversations())


def _list(vault: Vault, requests: Vault, known: dict[str, Conversation]) -> int:
    entries, others = vault.entries(), requests.entries()
    if not entries and not others:
        print("There are no saved caches.")
        return 0
    for entry in reversed(entries):
        print(_line(entry, known))
    for entry in reversed(others):
        print(_line(entry, {}, REQUEST))
    total = sum(entry.bytes for entry in (*entries, *others))
    print(f"\n{size(total)} of the {size(vault.budget_bytes())} budget")
    return 0


def _prune(vault: Vault, requests: Vault, known: dict[str, Conversation], *, dry_run: bool) -> int:
    orphans = [entry for entry in vault.entries() if known and entry.conversation not in known]
    keep = [*_in_use(known), *(entry.conversation for entry in orphans)]
    freed = sum(entry.bytes for entry in orphans)
    chosen = orphans + vault.prune_candidates(keep, -freed)
    failed: list[str] = []
    deleted = vault.prune_earlier(-freed, dry_run=dry_run)
    if deleted:
        print(f"{size(deleted):>15}  tokens as they were under earlier schemes")
    for entry in chosen:
        line = _line(entry, known)
        if dry_run or _remove(vault, entry, failed):
            deleted += entry.bytes
            print(line)
    others = requests.prune_candidates()
    for entry in others:
        line = _line(entry, {}, REQUEST)
        if dry_run or _remove(requests, entry, failed):
            deleted += entry.bytes
            print(line)
    verb = "would be deleted" if dry_run else "deleted"
    print(
        f"{size(deleted)} {verb}."
        if chosen or others or deleted
        else "The caches are within the budget; nothing to delete."
    )
    return _report((vault, requests), failed)


def _wipe(vault: Vault, requests: Vault, *, confirmed: bool) -> int:
    entries = [*vault.entries(), *requests.entries()]
    total = size(sum(entry.bytes for entry in entries))
    failed: list[str] = []
    if entries and not confirmed:
        if not sys.stdin.isatty():
            raise ConfirmationRequired(
                "Standard input is not a terminal to confirm on; pass --yes to delete all saved caches."
            )
        answer = input(f"Delete {len(entries)} saved caches ({total})? The conversations stay. [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            print("Nothing was deleted.")
            return 1
    deleted = 0
    for one in (vault, requests):
        deleted += sum(entry.bytes for entry in one.entries() if _remove(one, entry, failed))
        one.remove_empty()
    print(f"{size(deleted)} deleted." if entries else "There are no saved caches.")
    return _report((vault, requests), failed)


def _remove(vault: Vault, entry: CacheEntry, failed: list[str]) -> bool:
    try:
        vault.remove(entry.conversation)
    except TqchatError as error:
        failed.append(str(error))
        return False
    return True


def _report(vaults: Sequence[Vault], failed: list[str]) -> int:
    """Say what could not be deleted, and what lies in the folders and is no cache."""
    for sentence in failed:
        print(one_line(sentence))
    for vault in vaults:
        foreign = vault.foreign_files()
        shown = [f"{one_line(path.name)} ({what})" for path, what in list(foreign.items())[:MAX_LISTED]]
        if foreign:
            more = f" and {len(foreign) - MAX_LISTED} more" if len(foreign) > MAX_LISTED else ""
            print(f"Left in {one_line(str(vault.folder))}: {', '.join(shown)}{more}.")
    return 1 if failed else 0


def _conversations() -> dict[str, Conversation]:
    file = paths.locate().database
    if not file.exists():
        return {}
    with open_for_reading(file) as database:
        return {one.id: one for one in (*database.conversations(), *database.deleted())}


def _in_use(known: dict[str, Conversation]) -> list[str]:
    """The conversations that are open in a process."""
    file = paths.locate().database
    if not file.exists():
        return []
    with Database(file) as database:
        return [one for one in known if database.leases.holder_pid(one) is not None]


def _line(entry: CacheEntry, known: dict[str, Conversation], unknown: str = UNKNOWN) -> str:
    entry = with_manifest(entry)
    one = known.get(entry.conversation)
    title = unknown if one is None else one_line(one.title) or UNTITLED
    scheme = single_line(entry.scheme)
    about = f"{entry.tokens:>9,} tokens  {scheme:<9}" if scheme else f"{'incomplete':>16}  {'':<9}"
    age = _age(time.time() - entry.used_at)
    name = single_line(entry.conversation)[:SHORT_ID]
    return f"{name}  {size(entry.bytes):>9}  {about}  {age:>8}  {title}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "now"
