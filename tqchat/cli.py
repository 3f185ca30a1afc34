"""The command line: reads the arguments, hands over to one command, turns what goes wrong into a sentence."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Sequence

from tqchat import __version__
from tqchat.commands import lab
from tqchat.errors import TqchatError
from tqchat.text import printable

FAILED = 1
INTERRUPTED = 130
BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``tqchat`` with these arguments (the process's own by default) and return its exit code."""
    _never_fail_to_print()
    options = _parser().parse_args(arguments)
    try:
        code = _dispatch(options)
        sys.stdout.flush()
    except TqchatError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader left, as `head` does.
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        _drop_output()
        _complain(f"Writing failed ({(error.strerror or str(error)).lower()}); free some room and try again.")
        return FAILED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tqchat",
        description="Chat with a local model, over a compressed KV cache. Without a command the app opens.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tqchat {__version__}")
    parser.add_argument(
        "--model", metavar="MODEL", help="a folder or a Hugging Face repo id; default: the starter"
    )
    parser.add_argument(
        "--scheme", metavar="SCHEME", help="cache scheme of new conversations, such as turbo0v4, or auto"
    )
    _add_speed(parser)
    commands = parser.add_subparsers(dest="command", metavar="command")

    run = commands.add_parser("run", help="answer one question and leave", allow_abbrev=False)
    run.add_argument("question", nargs="?", help="what to ask; read from standard input if absent or -")
    # SUPPRESS: the options may stand before or behind the command, and silence behind it must not undo them.
    run.add_argument(
        "--model", metavar="MODEL", default=argparse.SUPPRESS, help="a folder or a Hugging Face repo id"
    )
    run.add_argument(
        "--scheme",
        metavar="SCHEME",
        default=argparse.SUPPRESS,
        help="cache scheme, such as turbo0v4, or auto",
    )
    _add_speed(run, default=argparse.SUPPRESS)
    run.add_argument("--max-tokens", metavar="N", type=int, help="longest reply, in tokens")
    run.add_argument("--temperature", metavar="T", type=float, help="0 always takes the likeliest token")
    run.add_argument("--seed", metavar="N", type=int, help="draw the same reply again")
    run.add_argument(
        "--json", action="store_true", help="print one JSON object: reply, tokens, speed and memory"
    )

    commands.add_parser("ls", help="list the conversations")
    show = commands.add_parser("show", help="print a conversation as plain text")
    show.add_argument("id", help="the conversation's id, or as much of its beginning as is unique")
    search = commands.add_parser("search", help="find what was said", allow_abbrev=False)
    search.add_argument(
        "text",
        nargs="+",
        help="words that must all be there, in any order; '\"two words\"' are kept together",
    )
    search.add_argument("--limit", metavar="N", type=int, default=20, help="most results, 20 by default")
    export = commands.add_parser("export", help="write conversations to a file", allow_abbrev=False)
    which = export.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "id", nargs="?", help="the conversation's id, or as much of its beginning as is unique"
    )
    which.add_argument("--all", action="store_true", help="every conversation")
    export.add_argument(
        "--format",
        choices=("md", "json"),
        help="md to read the branch that is shown (the default), json to keep everything",
    )
    export.add_argument(
        "-o", "--output", metavar="FILE", help="the file; without it, or with -, standard output"
    )
    imports = commands.add_parser("import", help="read conversations from a JSON export")
    imports.add_argument("file", metavar="FILE", help="the file; - is standard input")
    commands.add_parser("locate", help="print where everything is kept")
    commands.add_parser("doctor", help="say what was found on this machine and what would make it faster")
    serve = commands.add_parser("serve", help="the app in a browser, on this machine", allow_abbrev=False)
    serve.add_argument("--host", default="127.0.0.1", help="address; only this machine by default")
    serve.add_argument("--port", type=int, default=8043, help="8043 by default")
    _add_cache(commands)
    lab.add_parser(commands)
    return parser


def _add_speed(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument(
        "--draft",
        metavar="MODEL",
        default=default,
        help="a small model of the same vocabulary to propose tokens",
    )
    parser.add_argument(
        "--pack-prompts",
        action="store_true",
        default=default or False,
        help="compress prompts while they are read: a smaller peak",
    )


def _add_cache(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    cache = commands.add_parser("cache", help="list the saved caches, or remove some", allow_abbrev=False)
    below = cache.add_subparsers(dest="cache_command", metavar="what")
    below.add_parser("list", help="sizes, tokens, schemes and ages, which `tqchat cache` alone does too")
    prune = below.add_parser("prune", help="remove what is over the budget, least recently used first")
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")
    wipe = below.add_parser("wipe", help="remove all of them; the conversations stay")
    wipe.add_argument("--yes", action="store_true", help="do not ask")


def _dispatch(options: argparse.Namespace) -> int:
    # Each command is imported when it is chosen: `tqchat ls` has no use for Textual.
    match options.command:
        case "run":
            from tqchat.commands import run

            return run.main(
                options.question,
                model=options.model,
                scheme=options.scheme,
                draft=options.draft,
                pack_prompts=options.pack_prompts,
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                seed=options.seed,
                as_json=options.json,
            )
        case "ls":
            from tqchat.commands import listing

            return listing.list_conversations()
        case "show":
            from tqchat.commands import listing

            return listing.show(options.id)
        case "search":
            from tqchat.commands import search

            return search.main(" ".join(options.text), options.limit)
        case "export":
            from tqchat.commands import exchange

            return exchange.export(options.id, file_format=options.format, output=options.output)
        case "import":
            from tqchat.commands import exchange

            return exchange.import_file(options.file)
        case "locate":
            from tqchat.commands import locate

            return locate.main()
        case "doctor":
            from tqchat.commands import doctor

            return doctor.main()
        case "serve":
            from tqchat.commands import serve

            return serve.main(
                host=options.host, port=options.port, model=options.model, scheme=options.scheme
            )
        case "cache":
            from tqchat.commands import cache

            return cache.main(options)
        case "lab":
            return lab.main(options)
        case _:
            from tqchat.commands import chat

            return chat.main(
                model=options.model,
                scheme=options.scheme,
                draft=options.draft,
                pack_prompts=options.pack_prompts,
            )


def _drop_output() -> None:
    # Else Python tries once more at exit, and says so.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(sentence: str) -> None:
    with contextlib.suppress(OSError):
        print(f"tqchat: {printable(sentence)}", file=sys.stderr)


def _never_fail_to_print() -> None:
    # A reply may hold what the terminal's encoding lacks; a question mark there is better than no reply.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
