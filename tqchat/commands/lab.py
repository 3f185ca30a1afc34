"""``tqchat lab``: quality, speed and robustness measurements."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqchat.commands import bench, endure
from tqchat.commands.measuring import (
    Progress,
    add_adapter_option,
    add_command,
    add_model_option,
    check_folder,
    load,
    write,
)
from tqchat.text import one_line

if TYPE_CHECKING:
    from tqchat.lab.evaluation import Dropped


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``lab`` and its subcommands to the command line's parser."""
    lab = commands.add_parser(
        "lab",
        help="measure quality, speed and robustness of cache schemes",
        description="Measure quality, speed and robustness of cache schemes on this machine.",
        allow_abbrev=False,
    )
    below = lab.add_subparsers(dest="lab_command", metavar="command", title="commands", required=True)

    evaluate = add_command(below, "eval", "compare the quality of schemes with the FP16 cache on a text")
    add_model_option(evaluate)
    add_adapter_option(evaluate)
    evaluate.add_argument(
        "--schemes",
        metavar="A,B,C",
        default="all",
        help="schemes to measure; mlx8 and mlx4 are mlx-lm's own quantised caches, kvarn4 to kvarn2 and "
        "swift4 to swift2 are published codecs (default: all of them)",
    )
    evaluate.add_argument(
        "--text", metavar="FILE", required=True, type=Path, help="the text to read, in UTF-8 (required)"
    )
    evaluate.add_argument(
        "--recall",
        metavar="FILE",
        type=Path,
        help='also test recall: JSON Lines of {"messages": [...], "answer": "..."}',
    )
    evaluate.add_argument("--tokens", metavar="N", type=int, help="tokens to read (default: 4096)")
    evaluate.add_argument(
        "--prefill", metavar="N", type=int, help="tokens of the prompt among them (default: a quarter)"
    )
    evaluate.add_argument("--json", metavar="OUT", type=Path, help="write the results to this file as JSON")
    evaluate.add_argument(
        "--plot", metavar="OUT.svg", type=Path, help="draw quality against size to this file"
    )
    evaluate.add_argument(
        "--outliers",
        metavar="F",
        type=float,
        help="first scale some key channels by this factor, for example 20, to simulate outliers",
    )
    evaluate.add_argument(
        "--uniform",
        action="store_true",
        help="give all layers the same bits, whatever the model's profile says",
    )
    evaluate.add_argument("--pack-prompts", action="store_true", help="compress the prompt during prefill")
    _add_one_by_one(evaluate)

    profile = add_command(below, "profile", "measure a model and save its profile for the scheme auto")
    profile.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default=argparse.SUPPRESS,
        help="model folder or Hugging Face repo id (default: from the settings)",
    )
    add_adapter_option(profile)
    profile.add_argument("--tokens", metavar="N", type=int, help="tokens to read (default: 2048)")
    _add_one_by_one(profile)

    add_command(below, "schemes", "print the table of all schemes as Markdown")

    restore = add_command(below, "restore", "time restoring saved caches against reading the text again")
    add_model_option(restore)
    add_adapter_option(restore)
    restore.add_argument(
        "--schemes",
        metavar="A,B,C",
        default="fp16,turbo0v4,turbo4,turbo2",
        help="schemes to measure (default: fp16,turbo0v4,turbo4,turbo2)",
    )
    restore.add_argument("--long", action="store_true", help="also measure 16,384 tokens")

    bench.add_parser(below)
    endure.add_parser(below)

    plot = add_command(below, "plot", "draw quality against size from results of `eval --json`")
    plot.add_argument("results", metavar="RESULTS.json", type=Path, help="the results to read")
    plot.add_argument("picture", metavar="OUT.svg", type=Path, help="the picture to write")


def _add_one_by_one(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--one-by-one",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="decode one token at a time, the default on a GPU, or up to 15 at once, the default on a CPU",
    )


def main(options: argparse.Namespace) -> int:
    """Run a subcommand of ``lab`` and return its exit code."""
    match options.lab_command:
        case "eval":
            return _evaluate(options)
        case "profile":
            return _profile(options)
        case "restore":
            return _restore(options)
        case "bench":
            return bench.main(options)
        case "endure":
            return endure.main(options)
        case "plot":
            from tqchat.lab.frontier import frontier_svg
            from tqchat.lab.results import Results

            write(options.picture, frontier_svg(Results.read(options.results)))
            return 0
        case _:
            from tqchat.lab.tables import scheme_table

            print(scheme_table())
            return 0


def _evaluate(options: argparse.Namespace) -> int:
    from tqchat.lab.candidates import parse_candidates
    from tqchat.lab.results import Results

    # Check all arguments before a model is loaded.
    candidates = parse_candidates(options.schemes)
    for out in (options.json, options.plot):
        check_folder(out)

    model = load(options.model, options.adapter)
    from tqchat.lab import evaluation, outliers, reading, recall

    text = reading.read_text(options.text)
    asked = None if options.recall is None else recall.read_prompts(options.recall)
    ids, prefill = reading.portion(model, text, options.tokens, options.prefill)
    if options.outliers is not None:
        outliers.add_outliers(model, options.outliers)
    if not options.uniform:
        candidates = tuple(
            replace(one, scheme=model.resolve_scheme(one.scheme.name)) if one.is_ours else one
            for one in candidates
        )
    progress = Progress()
    rows, dropped = evaluation.evaluate(
        model,
        candidates,
        ids,
        prefill,
        one_by_one=options.one_by_one,
        pack_prompts=options.pack_prompts,
        progress=progress,
    )
    if asked is not None:
        answered = recall.recall(model, candidates, asked, progress)
        rows = [replace(row, recall=answered.get(row.scheme)) for row in rows]
    progress.end()
    name = model.info.label + ("" if options.outliers is None else f" with outliers x{options.outliers:g}")
    results = Results(name, options.text.name, len(ids) - 1, tuple(rows))
    if options.json is not None:
        write(options.json, results.to_json())
    if options.plot is not None and rows:
        from tqchat.lab.frontier import frontier_svg

        write(options.plot, frontier_svg(results))
    if rows:
        from tqchat.lab.tables import result_table

        measured = f"{prefill:,} read as the prompt, {results.tokens - prefill:,} measured"
        held = f"{results.tokens:,} tokens held"
        print(f"{one_line(results.model)} on {one_line(results.text)}: {held}, {measured}.\n")
        print(result_table(results))
    return _report_dropped(dropped)


def _profile(options: argparse.Namespace) -> int:
    model = load(options.model, options.adapter)
    from tqchat import paths
    from tqchat.engine.memory import auto_scheme, quality_profile
    from tqchat.kv.scheme import AUTO
    from tqchat.lab import profiling
    from tqchat.lab.results import Results
    from tqchat.lab.tables import result_table

    locations = paths.locate()
    progress = Progress()
    made, rows, dropped = profiling.measure(
        model, tokens=options.tokens, one_by_one=options.one_by_one, progress=progress
    )
    progress.end()
    file = quality_profile.save(locations, made)
    print(f"{one_line(made.model)} on the built-in text, {made.tokens:,} tokens held.\n")
    print(result_table(Results(made.model, "the built-in text", made.tokens, tuple(rows))))
    choice = auto_scheme.resolve_scheme(AUTO, profile=made, on_cpu=model.on_cpu)
    print(f"\nauto, with memory to spare: {choice.reason}\nSaved to {file}.")
    return _report_dropped(dropped)


def _restore(options: argparse.Namespace) -> int:
    from tqchat.kv.scheme import parse_scheme

    schemes = [parse_scheme(name.strip()).name for name in options.schemes.split(",")]
    model = load(options.model, options.adapter)
    from tqchat.lab import restore_bench

    lengths = (*restore_bench.LENGTHS, restore_bench.LONG_LENGTH) if options.long else restore_bench.LENGTHS
    progress = Progress()
    rows = []
    for row in restore_bench.measure(model, schemes, lengths):
        rows.append(row)
        progress(f"{row.scheme}, {row.tokens:,} tokens", len(rows), len(schemes) * len(lengths))
    progress.end()
    print(restore_bench.table(rows))
    return 0


def _report_dropped(dropped: list[Dropped]) -> int:
    for one in dropped:
        print(f"tqchat: {one.name} was not measured: {one.reason}.", file=sys.stderr)
    return 1 if dropped else 0
