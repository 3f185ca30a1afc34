"""Options of ``tqchat api``, which every command line of tqchat parses."""

from __future__ import annotations

import argparse
import contextlib

from tqchat.api.usual import LOOPBACK, PORT, TOKEN_VARIABLE
from tqchat.engine.requests.options import RequestOptions


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tqchat api`` that are its own."""
    parser.add_argument(
        "--host",
        default=LOOPBACK,
        help=f"address to listen on (default: {LOOPBACK}, reachable from this machine only)",
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"port to listen on (default: {PORT})")
    parser.add_argument(
        "--token",
        metavar="TOKEN",
        help="requests must have this token; needed for addresses that other machines reach (default: the "
        f"environment variable {TOKEN_VARIABLE}, which other users of this machine cannot read)",
    )
    parser.add_argument(
        "--no-store", action="store_true", help="keep no caches of requests on disk, only in memory"
    )
    parser.add_argument(
        "--keep-days",
        metavar="N",
        type=_days,
        default=RequestOptions.keep_days,
        help="delete saved caches of requests that were not used for so many days (default: "
        f"{RequestOptions.keep_days:g})",
    )


def _days(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (days := float(text)) < 100_000:
            return days
    raise argparse.ArgumentTypeError(f"{text!a} is not a number of days above 0 and below 100,000")
