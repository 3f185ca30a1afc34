"""The command line: parses arguments, runs one command, and prints errors as one sentence."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqchat import __version__, terminal
from tqchat.commands import lab
from tqchat.commands.completion import SHELLS
from tqchat.commands.completion import main as print_completion
from tqchat.commands.interruption import Interrupted, end_process
from tqchat.commands.measuring import add_command
from tqchat.commands.models import command as models
from tqchat.commands.run import add_sampling_options
from tqchat.commands.servers.api_options import add_options as add_api_options
from tqchat.errors import TqchatError
from tqchat.paths import NoCurrentFolder
from tqchat.text import one_line

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_ID_HELP = "id of the conversation, or a unique prefix of it"
_EPILOG = """\
`tqchat COMMAND --help` describes the options of a command. `run` and `api` take the options
above too; `serve` uses --model, --scheme and --adapter if they precede it. Settings are
read from config.toml, whose location `tqchat locate` prints; options override them.
Set TQCHAT_HOME to keep all of tqchat's files in one folder.

Exit codes: 0 success, 1 failure, 2 invalid option, setting or input,
128 + n ended by signal n (130: interrupted), 141 output closed by the reader."""
_RUN_EPILOG = """\
Sampling and thinking options default to the settings, then to the model's own values.

Standard input is read to its end. In a loop over lines, keep it from `run`:
  while read -r question; do tqchat run "$question" < /dev/null; done < questions.txt

--json prints one line, an object with these fields:
  reply        the answer
  reasoning    the text that the model generated before the answer, or ""
  model        name of the model
  scheme       cache scheme at the end of the reply
  tokens       prompt: tokens of the prompt; prefilled: those that the model read;
               restored: those that came from a saved cache (0 without
               --continue or --conversation);
               generated: tokens of the reply, reasoning included; if --draft names what
               proposes tokens also drafted: how many; accepted: those that were kept
  speed        prompt_tok_s, decode_tok_s: tokens per second, of prompt and reply
  memory       bytes: size of the cache; allocated_bytes: the same with spare capacity;
               fp16_bytes: size of the same tokens at 16 bits; ratio: fp16_bytes
               divided by bytes; layers_compressed: layers that hold packed
               tokens; layers_total: all layers
On failure, the object has one field, error: the sentence that standard error has."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{2,63}")
_HEXADECIMAL = re.compile(r"[0-9a-f]+")

_COMPLETION_EPILOG = """\
bash:  tqchat completion bash > ~/.local/share/bash-completion/completions/tqchat
zsh:   tqchat completion zsh > FOLDER/_tqchat, with a FOLDER of $fpath
fish:  tqchat completion fish > ~/.config/fish/completions/tqchat.fish"""

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
    terminal.open_closed_streams()
    terminal.clean_standard_streams()
    # Where PyTorch is installed, transformers would load it, which takes longer than all else at the start.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    parser = _parser()
    written = list(sys.argv[1:] if arguments is None else arguments)
    completed = _with_command(parser, written)
    try:
        options = parser.parse_args(completed)
        options.without_command = completed != written
        _check_current_folder()
        code = _dispatch(options)
        sys.stdout.flush()
    except Interrupted as interrupted:
        _print_error(str(interrupted))
        end_process(interrupted.exit_code)
    except TqchatError as error:
        _print_error(str(error))
        return error.exit_code
    except ImportError as error:
        reason = one_line(str(error))
        _print_error(f"The installation is incomplete ({reason}): install tqchat again with its packages.")
        return EXIT_FAILED
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
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not is_full and error.errno not in (errno.EIO, errno.EFBIG):
            raise
        _discard_output()
        advice = "; free some space and try again" if is_full else ""
        _print_error(f"Writing failed ({(error.strerror or str(error)).lower()}){advice}.")
        return EXIT_FAILED
    return code


class _Parser(argparse.ArgumentParser):
    """A parser that does not hide that its help could not be written."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file is not sys.stdout:
            super()._print_message(message, file)
        elif message:
            print(message, end="", flush=True)


def _check_current_folder() -> None:
    """Check that the current folder is there.

    Raises:
        NoCurrentFolder: if it was deleted.
    """
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise NoCurrentFolder from error


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
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

    run = add_command(commands, "run", "answer one question on standard output and exit")
    run.epilog, run.formatter_class = _RUN_EPILOG, argparse.RawDescriptionHelpFormatter
    run.add_argument(
        "question",
        nargs="*",
        help="the question, with or without quotes; @FILE attaches a text file, and so does a pipe. Without "
        "it, or with -, the question is read from standard input",
    )
    run.add_argument(
        "--file", metavar="FILE", action="append", default=[], help="attach a text file; may be repeated"
    )
    stored = run.add_mutually_exclusive_group()
    stored.add_argument(
        "-c",
        "--continue",
        action="store_true",
        dest="continues",
        help="ask in the conversation that was used last; question and reply are stored in it",
    )
    stored.add_argument("--conversation", metavar="ID", help=f"ask in this conversation; {_ID_HELP}")
    run.add_argument(
        "--system",
        metavar="TEXT",
        help="instructions for the model, for this question only, instead of the settings' or conversation's",
    )
    run.add_argument("--verbose", action="store_true", help="also say which scheme auto chose, and why")
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

    ls = add_command(commands, "ls", "list the conversations, most recent first")
    ls.add_argument(
        "--json", action="store_true", help="print a JSON array of objects; times are Unix times in seconds"
    )
    opens = add_command(commands, "open", "open a conversation in the app; `tqchat ID` does the same")
    opens.add_argument("id", help=_ID_HELP)
    # As for run: these are accepted before and after the command.
    _add_model_options(opens, default=argparse.SUPPRESS)
    show = add_command(commands, "show", "print a conversation as plain text")
    show.add_argument("id", help=_ID_HELP)

    remove = add_command(commands, "rm", "delete conversations; for 24 hours they can be restored")
    remove.add_argument("id", nargs="*", help=_ID_HELP)
    remove.add_argument(
        "--undo", action="store_true", help="restore what was deleted; without an id the last conversation"
    )

    search = add_command(
        commands, "search", "search titles and messages of all conversations; exits 1 if nothing is found"
    )
    search.add_argument(
        "text", nargs="+", help="words that must all occur, in any order; '\"two words\"' searches a phrase"
    )
    search.add_argument(
        "--limit", metavar="N", type=int, default=20, help="maximum number of results (default: 20)"
    )

    export = add_command(commands, "export", "write conversations to a file or to standard output")
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
    export.add_argument("--force", action="store_true", help="replace FILE if it exists")

    imports = add_command(
        commands, "import", "add conversations of tqchat, ChatGPT, Claude, LM Studio or in Markdown"
    )
    imports.add_argument(
        "file",
        metavar="FILE",
        help="a JSON export of tqchat, a data export of ChatGPT or Claude (the zip file or its "
        "conversations.json), a conversation of LM Studio, a Markdown chat, or a folder of these; - reads "
        "standard input",
    )
    imports.add_argument(
        "--dry-run", action="store_true", help="say what would be imported, and import nothing"
    )

    add_command(commands, "locate", "print where settings, conversations, caches and models are stored")
    doctor = add_command(
        commands,
        "doctor",
        "check the installation and suggest what would make it faster; exits 1 on problems",
    )
    doctor.add_argument(
        "--report",
        action="store_true",
        help="print versions, device and a short benchmark to paste into an issue, without names or paths",
    )

    serve = add_command(commands, "serve", "serve the app to a browser on this machine until Ctrl+C")
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, reachable from this machine only)",
    )
    serve.add_argument("--port", type=int, default=8043, help="port to listen on (default: 8043)")

    api = add_command(commands, "api", "answer other programs, in OpenAI's protocol, until Ctrl+C")
    # As for run: these are accepted before and after the command.
    _add_model_options(api, default=argparse.SUPPRESS)
    add_api_options(api)

    models.add_parser(commands)
    completion = add_command(commands, "completion", "print a script that completes commands in a shell")
    completion.epilog = _COMPLETION_EPILOG
    completion.formatter_class = argparse.RawDescriptionHelpFormatter
    completion.add_argument("shell", choices=SHELLS)

    _add_cache(commands)
    lab.add_parser(commands)
    return parser


def _with_command(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """The arguments, with ``open`` before the id of a conversation that stands in place of a command."""
    (commands,) = (one.choices for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    place = 0
    while place < len(arguments) and arguments[place].startswith("-") and len(arguments[place]) > 1:
        action = parser._option_string_actions.get(arguments[place])
        place += 1 if action is None or action.nargs == 0 else 2
    found = list(arguments)
    if place < len(found) and found[place] not in commands and _ID.fullmatch(found[place]):
        close = difflib.get_close_matches(found[place], commands, n=1)
        # Hexadecimal digits alone are never a misspelt command.
        if not close or _HEXADECIMAL.fullmatch(found[place]):
            found.insert(place, "open")
    return found


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
        metavar="WHAT",
        default=default,
        help="what proposes tokens (same reply, faster): prompt, from what the conversation repeats; a draft "
        "model with the same vocabulary; none; or auto, which is prompt where it pays (default)",
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
    cache = add_command(commands, "cache", "list, prune or delete the KV caches saved on disk")
    below = cache.add_subparsers(dest="cache_command", metavar="command", title="commands")
    add_command(below, "list", "list size, tokens, scheme, age and conversation of each cache (the default)")
    prune = add_command(
        below,
        "prune",
        "delete caches without a conversation, then the least recently used ones over the budget",
    )
    prune.add_argument("--dry-run", action="store_true", help="list what would be deleted, delete nothing")
    wipe = add_command(below, "wipe", "delete all saved caches; the conversations stay")
    wipe.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def _dispatch(options: argparse.Namespace) -> int:
    # Import only the chosen command: `tqchat ls` does not need Textual.
    match options.command:
        case "run":
            from tqchat.commands import run

            return run.main(options)
        case "ls":
            from tqchat.commands.conversations import listing

            return listing.list_conversations(as_json=options.json)
        case "show":
            from tqchat.commands.conversations import listing

            return listing.show(options.id)
        case "search":
            from tqchat.commands.conversations import search

            return search.main(" ".join(options.text), options.limit)
        case "export":
            from tqchat.commands.conversations import exchange

            return exchange.export(
                options.id, file_format=options.format, output=options.output, force=options.force
            )
        case "rm":
            from tqchat.commands.conversations import removal

            return removal.restore(options.id) if options.undo else removal.remove(options.id)
        case "import":
            from tqchat.commands.conversations import importing

            return importing.main(options.file, dry_run=options.dry_run)
        case "locate":
            from tqchat.commands import locate

            return locate.main()
        case "doctor":
            from tqchat.commands import doctor

            return doctor.main(options.report)
        case "serve":
            from tqchat.commands.servers import serve

            return serve.main(
                host=options.host,
                port=options.port,
                model=options.model,
                scheme=options.scheme,
                adapter=options.adapter,
            )
        case "api":
            from tqchat.commands.servers import api

            return api.main(options)
        case "completion":
            return print_completion(_parser(), options.shell)
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
                conversation=options.id if options.command == "open" else None,
                without_command=options.without_command,
            )


def _discard_output() -> None:
    # Otherwise Python flushes again at exit and reports the error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(sentence: str) -> None:
    with contextlib.suppress(OSError):
        for line in sentence.splitlines():
            print(f"tqchat: {line}", file=sys.stderr)
