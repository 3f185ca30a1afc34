"""``python -m tqchat.kv SCHEME COMMAND ...``: a program of mlx-lm with caches under a scheme."""

from __future__ import annotations

import sys

USAGE = """usage: python -m tqchat.kv SCHEME COMMAND ...

COMMAND is one of mlx-lm (generate, chat, server, ...); its own options follow."""


def main() -> int:
    """Run mlx-lm's program with the arguments after the scheme; the exit code."""
    from tqchat.kv.scheme import UnknownScheme, parse_scheme

    if len(sys.argv) < 3 or sys.argv[1] in ("-h", "--help"):
        print(USAGE, file=sys.stderr)
        return 2
    try:
        scheme = parse_scheme(sys.argv.pop(1))
    except UnknownScheme as error:
        print(error, file=sys.stderr)
        return 2
    from mlx_lm.cli import main as run

    from tqchat.kv import use_scheme

    use_scheme(scheme)
    run()  # type: ignore[no-untyped-call]
    return 0


if __name__ == "__main__":
    sys.exit(main())
