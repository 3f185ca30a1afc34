"""The command line: parses arguments, runs one command, and prints errors as one sentence."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tqchat import __version__, terminal
from tqchat.commands import lab
from tqchat.commands.interruption import Interrupted, end_process
from tqchat.commands.models import command as models
from tqchat.commands.run import add_sampling_options
from tqchat.errors import TqchatError

_ID_HELP = "id of the conversation, or a unique prefix of it"
_EPILOG = """\
`tqchat COMMAND --help` describes the options of a command. `run` takes the options above
too; `serve` uses --model, --scheme and --adapter if they precede it. Settings are read
from config.toml, whose location `tqchat locate` prints; options override them.
Set TQCHAT_HOME to keep all of tqchat's files in one folder.

Exit codes: 0 success, 1 failure, 2 invalid option, setting or input,
128 + n ended by signal n (130: interrupted), 141 output closed by the reader."""
_RUN_EPILOG = """\
Sampling and thinking options default to the settings, then to the model's own values.

--json prints one line, an object with these fields:
  reply        the answer
  reasoning    the text that the model generated before the answer, or ""
  model        name of the model
  scheme       cache scheme at the end of the reply
  tokens       prompt: tokens of the prompt; prefilled: those that the model read;
               restored: those that came from a saved cache (always 0 here);
               generated: tokens of the reply, reasoning included; with a draft
               model also drafted: tokens it proposed; accepted: those that were kept
  speed        prompt_tok_s, decode_tok_s: tokens per second, of prompt and reply
  memory       bytes: size of the cache; allocated_bytes: the same with spare capacity;
               fp16_bytes: size of the same tokens at 16 bits; ratio: fp16_bytes
               divided by bytes; layers_compressed: layers that hold packed
               tokens; layers_total: all layers"""

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
_NO_ACCESS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EISDIR,
)
"""Errors of the user's files that no command has a better sentence for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``tqchat`` with these arguments (the process's own by default) and return its exit code."""
    terminal.clean_standard_streams()
    options = _parser().parse_args(arguments)
    try:
        code = _dispatch(options)
        sys.stdout.flush()
    except Interrupted as interrupted:
        _print_error(str(interrupted))
        end_process(interrupted.exit_code)
    except TqchatError as error:
        _print_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends now
        _print_error("Interrupted.")
        if "mlx" in sys.modules:
            end_process(EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader closed the pipe, like `head` does.
        _discard_output()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno in _NO_ACCESS and error.filename is not None:
            _print_error(f"{error.filename} cannot be used ({(error.strerror or str(error)).lower()}).")
            return EXIT_FAILED
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        _discard_output()
        _print_error(
            f"Writing failed ({(error.strerror or str(error)).lower()}); free some space and try again."
        )
        return EXIT_FAILED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tqchat",
        description="Chat with a local model over a compressed KV cache. Without a command, the app opens.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"tqchat {__version__} from {Path(__file__).parent}",
        help="print the version and where it is installed, and exit",
    )
    _add_model_options(parser)
    commands = parser.add_subparsers(dest="command", metavar="command", title="commands")

    run = _add_command(commands, "run", "answer one question on standard output and exit")
    run.epilog, run.formatter_class = _RUN_EPILOG, argparse.RawDescriptionHelpFormatter
    run.add_argument("question", nargs="?", help="the question; read from standard input if omitted or -")
    # SUPPRESS: the options are accepted before and after the command; without it, the defaults of those
    # after it would overwrite the values given before it.
    _add_model_options(run, default=argparse.SUPPRESS)
    add_sampling_options(run)
    run.add_argument(
        "--think",
        metavar="VALUE",
        dest="thinking",
        help="whether and how much the model reasons, if its chat template has a switch for it: on, off, "
        "low, medium or high",
    )
    run.add_argument(
        "--think-budget",
        metavar="N",
        type=int,
        dest="thinking_budget",
        help="maximum length of the reasoning in tokens; then the answer begins",
    )
    run.add_argument(
        "--show-thinking", action="store_true", help="also print the reasoning, on standard error"
    )
    run.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object instead of text; its fields are described below",
    )

    _add_command(commands, "ls", "list the conversations, most recent first")
    show = _add_command(commands, "show", "print a conversation as plain text")
    show.add_argument("id", help=_ID_HELP)

    search = _add_command(commands, "search", "search titles and messages of all conversations")
    search.add_argument(
        "text", nargs="+", help="words that must all occur, in any order; '\"two words\"' searches a phrase"
    )
    search.add_argument(
        "--limit", metavar="N", type=int, default=20, help="maximum number of results (default: 20)"
    )

    export = _add_command(commands, "export", "write conversations to a file or to standard output")
    which = export.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", help=f"{_ID_HELP}; give an id or --all")
    which.add_argument("--all", action="store_true", help="export all conversations")
    export.add_argument(
        "--format",
        choices=("md", "json"),
        help="md: Markdown of the shown branch; json: everything, for `tqchat import` "
        "(default: json if FILE ends in .json, else md)",
    )
    export.add_argument(
        "-o", "--output", metavar="FILE", help="file to write; standard output if omitted or -"
    )

    imports = _add_command(commands, "import", "add conversations from a JSON export")
    imports.add_argument("file", metavar="FILE", help="the file; - reads standard input")

    _add_command(commands, "locate", "print where settings, conversations, caches and models are stored")
    doctor = _add_command(
        commands,
        "doctor",
        "check the installation and suggest what would make it faster; exits 1 on problems",
    )
    doctor.add_argument(
        "--report",
        action="store_true",
        help="print versions, device and a short benchmark to paste into an issue, without names or paths",
    )

    serve = _add_command(commands, "serve", "serve the app to a browser on this machine until Ctrl+C")
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, reachable from this machine only)",
    )
    serve.add_argument("--port", type=int, default=8043, help="port to listen on (default: 8043)")

    models.add_parser(commands)
    _add_cache(commands)
    lab.add_parser(commands)
    return parser


def _add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str
) -> argparse.ArgumentParser:
    """Add a command whose summary is also the first line of its own help."""
    description = f"{summary[0].upper()}{summary[1:]}."
    return commands.add_parser(name, help=summary, description=description, allow_abbrev=False)


def _add_model_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument(
        "--model",
        metavar="MODEL",
        default=default,
        help="model folder or Hugging Face repo id (default: from the settings, else the bundled model)",
    )
    parser.add_argument(
        "--scheme",
        metavar="SCHEME",
        default=default,
        help="cache scheme of new conversations, such as turbo0v4, or auto; `tqchat lab schemes` lists all",
    )
    parser.add_argument(
        "--draft",
        metavar="MODEL",
        default=default,
        help="draft model: a small model with the same vocabulary that proposes tokens (same reply, faster)",
    )
    parser.add_argument(
        "--adapter",
        metavar="FOLDER",
        default=default,
        help="folder of a LoRA adapter for the model, as mlx-lm trains them, or off",
    )
    parser.add_argument(
        "--pack-prompts",
        action="store_true",
        default=default or False,
        help="compress prompts during prefill, which lowers peak memory",
    )


def _add_cache(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    cache = _add_command(commands, "cache", "list, prune or delete the KV caches saved on disk")
    below = cache.add_subparsers(dest="cache_command", metavar="command", title="commands")
    _add_command(below, "list", "list size, tokens, scheme, age and conversation of each cache (the default)")
    prune = _add_command(
        below,
        "prune",
        "delete caches without a conversation, then the least recently used ones over the budget",
    )
    prune.add_argument("--dry-run", action="store_true", help="list what would be deleted, delete nothing")
    wipe = _add_command(below, "wipe", "delete all saved caches; the conversations stay")
    wipe.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def _dispatch(options: argparse.Namespace) -> int:
    # Import only the chosen command: `tqchat ls` does not need Textual.
    match options.command:
        case "run":
            from tqchat.commands import run

            return run.main(
                options.question,
                model=options.model,
                scheme=options.scheme,
                draft=options.draft,
                adapter=options.adapter,
                pack_prompts=options.pack_prompts,
                given={name: getattr(options, name) for name in run.OPTIONS},
                show_thinking=options.show_thinking,
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

            return doctor.main(options.report)
        case "serve":
            from tqchat.commands import serve

            return serve.main(
                host=options.host,
                port=options.port,
                model=options.model,
                scheme=options.scheme,
                adapter=options.adapter,
            )
        case "cache":
            from tqchat.commands import cache

            return cache.main(options)
        case "models":
            return models.main(options)
        case "lab":
            return lab.main(options)
        case _:
            from tqchat.commands import chat

            return chat.main(
                model=options.model,
                scheme=options.scheme,
                draft=options.draft,
                adapter=options.adapter,
                pack_prompts=options.pack_prompts,
            )


def _discard_output() -> None:
    # Otherwise Python flushes again at exit and reports the error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(sentence: str) -> None:
    with contextlib.suppress(OSError):
        print(f"tqchat: {sentence}", file=sys.stderr)
