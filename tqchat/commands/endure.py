"""``tqchat lab endure``: whether conversations and caches survive kills, damage and full disks here."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from tqchat.commands.measuring import Progress, load
from tqchat.kv.scheme import parse_scheme

KILLS, MUTATIONS = 30, 500


def add_parser(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``endure`` to the commands of the laboratory."""
    endure = below.add_parser(
        "endure", help="kill chats, damage caches, fill disks, and look at what is left", allow_abbrev=False
    )
    endure.add_argument("--model", metavar="MODEL", default=argparse.SUPPRESS, help="a folder or a repo id")
    endure.add_argument("--kills", metavar="N", type=int, default=KILLS, help=f"{KILLS} by default")
    endure.add_argument(
        "--mutations", metavar="N", type=int, default=MUTATIONS, help=f"{MUTATIONS} by default"
    )
    endure.add_argument("--schemes", metavar="A,B,C", default="fp16,turbo0v4,turbo4", help="of the mutations")
    endure.add_argument("--seed", metavar="TEXT", default="tqchat", help="what chance goes by")


def main(options: argparse.Namespace) -> int:
    """Run all three in a folder of their own, and print what was found.

    Raises:
        Broken: at the first thing that did not endure. The folder then stays, to be looked at.
    """
    schemes = [parse_scheme(name.strip()).name for name in options.schemes.split(",")]
    model = load(options.model)
    from tqchat.lab.endure import full_disk, kills, mutations
    from tqchat.lab.tables import markdown

    folder, progress = Path(tempfile.mkdtemp(prefix="tqchat-endure-")), Progress()
    ref = str(model.folder)
    rows: list[tuple[str, str]] = []
    if options.kills:

        def killed(done: int) -> None:
            progress("kills", done, options.kills)

        survived = kills.endure(model, ref, options.kills, folder / "kills", options.seed, killed)
        rows += [
            ("kills", f"{survived.kills:,}"),
            ("committed messages looked for, none of them lost", f"{survived.messages:,}"),
            ("replies found unfinished", f"{survived.unfinished:,}"),
            ("caches that went on bit for bit", f"{survived.caches:,}"),
            ("the same, in the process that came next", f"{survived.restored_alive:,}"),
            ("the same, of places to go back to", f"{survived.checkpoints:,}"),
            ("caches under fp16 equal to a re-reading", f"{survived.read_again:,}"),
        ]
    if options.mutations:

        def mutated(done: int) -> None:
            progress("mutations", done, options.mutations)

        found = mutations.endure(
            model, schemes, options.mutations, folder / "mutations", options.seed, mutated
        )
        rows += [
            ("mutations", f"{found.mutations:,}"),
            ("refused, with a reason", f"{found.refused:,}"),
            ("used as far as they were whole", f"{found.used:,}"),
            ("without a manifest", f"{found.absent:,}"),
            ("most memory of a load, in sizes of its files", f"{found.worst:.1f}"),
        ]

    def refused(writes: int) -> None:
        progress.note("a full disk")

    full = full_disk.endure(model, ref, folder / "disk", refused)
    progress.end()
    rows.append(("saves that a full disk refused, each at another write", f"{full.refused:,}"))
    print(markdown(["what was found", "how often"], [list(row) for row in rows], right=[1]))
    shutil.rmtree(folder)
    return 0
