"""Arguments of ``tqchat models``, and which of its commands runs."""

from __future__ import annotations

import argparse

from tqchat.commands.measuring import add_command
from tqchat.commands.models import files, listing, searching

_REPO_HELP = "Hugging Face repo id: owner/name"
_LIST_EPILOG = """\
With --json one object is printed: machine (name, free_bytes), checked (date of the list),
recommended (all of them, with obstacle: why one does not suit this machine, or null) and local.
cache holds, for 8,192 and 32,768 tokens, the bytes under scheme (what auto picks) and under fp16."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``models`` to the commands."""
    models = add_command(commands, "models", "list, find, download and delete models")
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
    parser = add_command(below, name, summary)
    # SUPPRESS keeps a --json that was given before the command.
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    return parser


def main(options: argparse.Namespace) -> int:
    """Run a subcommand of ``models`` and return its exit code."""
    match options.models_command:
        case "search":
            return searching.search_hub(" ".join(options.words), options.limit, options.json)
        case "pull":
            return files.pull(options.repo, options.json)
        case "rm":
            return files.remove(options.repo, options.yes, options.json)
        case _:
            return listing.list_models(options.json)
