"""``tqchat lab endure``: kills, damaged caches, mutated files of every kind, and full disks."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from tqchat.commands.measuring import Progress, add_command, add_model_option, load
from tqchat.kv.scheme import parse_scheme
from tqchat.units import size

KILLS, MUTATIONS, FILES = 30, 500, 10_000


def add_parser(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``endure`` to the subcommands of ``lab``."""
    endure = add_command(
        below, "endure", "test that conversations and caches survive kills, damage and full disks"
    )
    add_model_option(endure)
    endure.add_argument(
        "--kills", metavar="N", type=int, default=KILLS, help=f"processes to kill (default: {KILLS})"
    )
    endure.add_argument(
        "--mutations",
        metavar="N",
        type=int,
        default=MUTATIONS,
        help=f"damaged caches to load (default: {MUTATIONS})",
    )
    endure.add_argument(
        "--files",
        metavar="N",
        type=int,
        default=FILES,
        help=f"mutated files that each reader of files is fed; the default takes an hour or more "
        f"(default: {FILES})",
    )
    endure.add_argument(
        "--readers",
        metavar="A,B,C",
        help="readers to feed them to, such as config,models (default: all)",
    )
    endure.add_argument(
        "--schemes",
        metavar="A,B,C",
        default="fp16,turbo0v4,turbo4",
        help="schemes of the damaged caches (default: fp16,turbo0v4,turbo4)",
    )
    endure.add_argument(
        "--seed", metavar="TEXT", default="tqchat", help="random seed of kills and damage (default: tqchat)"
    )


def main(options: argparse.Namespace) -> int:
    """Run all tests in a temporary folder and print the counts.

    Raises:
        CheckFailed: at the first failure. The temporary folder is then kept for inspection.
    """
    schemes = [parse_scheme(name.strip()).name for name in options.schemes.split(",")]
    model = load(options.model)
    from tqchat.lab.endure import damaged_files, full_disk, kills, mutations
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
            ("committed messages checked, none lost", f"{survived.messages:,}"),
            ("replies left unfinished", f"{survived.unfinished:,}"),
            ("caches that continued bit for bit", f"{survived.caches:,}"),
            ("caches that continued bit for bit in the next process", f"{survived.restored_by_chat:,}"),
            ("checkpoints that continued bit for bit", f"{survived.checkpoints:,}"),
            ("fp16 caches equal to a new prefill", f"{survived.prefilled_again:,}"),
            ("scheme changes among them", f"{survived.scheme_changes:,}"),
            ("branches among them", f"{survived.branches:,}"),
        ]
    if options.mutations:

        def mutated(done: int) -> None:
            progress("mutations", done, options.mutations)

        found = mutations.endure(
            model, schemes, options.mutations, folder / "mutations", options.seed, mutated
        )
        rows += [
            ("mutations", f"{found.mutations:,}"),
            ("refused with a reason", f"{found.refused:,}"),
            ("restored up to the damage", f"{found.used:,}"),
            ("without a manifest", f"{found.absent:,}"),
            ("peak memory of a load, relative to the size of its files", f"{found.worst:.1f}"),
        ]

    if options.files:
        names = damaged_files.chosen(options.readers)

        def fed(name: str, done: int) -> None:
            progress(f"files: {name}", names.index(name) * options.files + done, len(names) * options.files)

        for count in damaged_files.endure(names, options.files, folder / "files", options.seed, fed):
            peak = f"at most {size(count.peak_bytes)}"
            outcome = f"{count.used:,} used, {count.refused:,} refused, {peak}"
            rows.append((f"mutated files of {count.name}: {outcome}", f"{count.files:,}"))

    def refused(writes: int) -> None:
        progress.note("full disk")

    full = full_disk.endure(model, ref, folder / "disk", refused)
    progress.end()
    rows.append(("saves refused by a full disk, each at another write", f"{full.refused:,}"))
    print(markdown(["result", "count"], [list(row) for row in rows], right=[1]))
    shutil.rmtree(folder)
    return 0
