"""``tqchat lab bench``: benchmarks of caches, kernels and the app."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqchat.commands.measuring import Progress, add_command, add_model_option, check_folder, load, write
from tqchat.errors import TqchatError
from tqchat.text import one_line

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel
    from tqchat.lab.bench.attention import Layer

KINDS = (
    "decode",
    "prefill",
    "turn",
    "attention",
    "kernels",
    "encode",
    "restore",
    "convert",
    "day",
    "drafting",
    "api",
    "events",
    "ui",
    "start",
)
API_SCHEMES = ("turbo4",)
"""Schemes for ``api`` if none are named: each takes minutes on a CPU."""
NEED_A_MODEL = {"decode", "prefill", "turn", "restore", "convert", "day", "drafting", "api", "events"}


class BadOption(TqchatError):
    """An option's value is out of range."""

    exit_code = 2


def add_parser(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``bench`` to the subcommands of ``lab``."""
    bench = add_command(below, "bench", "benchmark speed and memory of caches, kernels and the app")
    bench.add_argument(
        "--what",
        metavar="A,B",
        default="decode",
        help=f"benchmarks to run: all, or some of {', '.join(KINDS)} (default: decode)",
    )
    bench.add_argument(
        "--schemes",
        metavar="A,B,C",
        help="schemes to measure (default: all, for api turbo4); mlx-lm's 16-, 8- and 4-bit caches, and for "
        "api its server, are always included",
    )
    bench.add_argument(
        "--context",
        metavar="N,M",
        default="2048",
        help="tokens in the cache; for day, of the whole conversation, branches included; for api, of the "
        "history at its end (default: 2048)",
    )
    bench.add_argument("--rounds", metavar="N", type=int, default=5, help="measured rounds (default: 5)")
    which = bench.add_mutually_exclusive_group()
    add_model_option(which)
    which.add_argument(
        "--shape", metavar="NAME", help="use random weights of a model's shape, such as llama-3.2-3b"
    )
    bench.add_argument(
        "--weights",
        metavar="BITS",
        type=int,
        choices=(4, 8, 16),
        default=16,
        help="bits per weight of --shape: 4, 8 or 16 (default: 16)",
    )
    for name, meaning in (
        ("query-heads", "query heads for attention, kernels and encode (default: the model's, or 24)"),
        ("kv-heads", "KV heads for attention, kernels and encode (default: the model's, or 8)"),
        ("head-dim", "head dimension for attention, kernels and encode (default: the model's, or 128)"),
        ("rows", "query tokens per step for attention and kernels (default: 1)"),
    ):
        bench.add_argument(f"--{name}", metavar="N", type=int, help=meaning)
    bench.add_argument("--json", metavar="OUT", type=Path, help="write the results to this file as JSON")
    bench.add_argument(
        "--plot", metavar="OUT.svg", type=Path, help="draw speeds relative to FP16 to this file"
    )


def main(options: argparse.Namespace) -> int:
    """Run the benchmarks, print tables and write the requested files; returns the exit code."""
    kinds = _kinds(options.what)
    contexts = [_least("--context", part, 2) for part in options.context.split(",")]
    rounds = _least("--rounds", options.rounds, 1)
    for out in (options.json, options.plot):
        check_folder(out)

    model = _model(options, kinds)
    from tqchat.lab.bench import kv_caches, machine, run
    from tqchat.lab.bench.results import BenchResults, row_line, tables

    candidates = kv_caches.candidates(options.schemes or "all")
    api_schemes = API_SCHEMES if options.schemes is None else run.own_schemes(candidates)
    layer = _layer(options, run.layer_of(model))
    progress = Progress()
    copied = machine.copy_bandwidth()
    plan = run.Plan(kinds, candidates, contexts, rounds, layer, api_schemes)
    left_out: dict[str, str] = {}

    def leave_out(name: str, error: Exception) -> None:
        left_out[name] = str(error)

    rows = []
    for row in run.rows(model, plan, progress.note, leave_out):
        rows.append(row)
        progress.line(row_line(row))
    progress.end()
    for cache, reason in left_out.items():
        print(f"tqchat: {cache} was left out: {one_line(reason)}.", file=sys.stderr)
    name = None if model is None else model.info.name
    results = BenchResults(machine.device(), name, copied, tuple(rows))
    if options.json is not None:
        write(options.json, results.to_json())
    if options.plot is not None:
        from tqchat.lab.bench.picture import bench_svg

        write(options.plot, bench_svg(results))
    print(tables(results))
    return 0


def _kinds(names: str) -> list[str]:
    asked = [name.strip().lower() for name in names.split(",")]
    for name in asked:
        if name != "all" and name not in KINDS:
            raise BadOption(f"--what is {name}, but must be all or some of {', '.join(KINDS)}.")
    return list(KINDS) if "all" in asked else [kind for kind in KINDS if kind in asked]


def _least(option: str, value: str | int, least: int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if number < least:
        raise BadOption(f"{option} is {value}, but must be a whole number of at least {least}.")
    return number


def _model(options: argparse.Namespace, kinds: list[str]) -> LoadedModel | None:
    if options.shape is not None:
        from tqchat.lab.bench import shapes

        return shapes.build(options.shape, options.weights)
    return load(options.model) if NEED_A_MODEL & set(kinds) else None


def _layer(options: argparse.Namespace, layer: Layer) -> Layer:
    """The attention shape: the model's, with the options' values."""
    names = ("query_heads", "kv_heads", "head_dim", "rows")
    asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    for name, value in asked.items():
        _least(f"--{name.replace('_', '-')}", value, 1)
    chosen = replace(layer, **asked)
    if chosen.query_heads % chosen.kv_heads:
        raise BadOption(f"{chosen.query_heads} query heads are not a multiple of {chosen.kv_heads} KV heads.")
    return chosen
