"""``tqchat serve``: serves the app to a browser, by default on this machine only."""

from __future__ import annotations

import secrets
import shlex
import sys
from pathlib import Path
from typing import Any

from tqchat.api.address import CannotServe as CannotServe
from tqchat.api.address import check_port, is_loopback, listening_address
from tqchat.engine.commands import NO_ADAPTER
from tqchat.errors import TqchatError
from tqchat.kv.scheme import scheme_setting

LOOPBACK = "127.0.0.1"
PORT = 8043


class ServeMissing(TqchatError):
    """The optional dependency textual-serve is not installed."""

    exit_code = 2

    def __init__(self) -> None:
        super().__init__("`tqchat serve` needs textual-serve; install it with `pip install 'tqchat[serve]'`.")


def main(*, host: str, port: int, model: str | None, scheme: str | None, adapter: str | None = None) -> int:
    """Serve until Ctrl+C.

    Raises:
        ServeMissing: if textual-serve is not installed.
        CannotServe: if the address is taken or not this machine's.
        AdapterUnusable: if the adapter cannot be loaded.
    """
    check_port(port)
    host = listening_address(host)
    served = server(shlex.join(app_command(model, scheme, adapter)), host, port)
    if not is_loopback(host):
        print(
            "Warning: anyone who has the link and can reach this address can read and change your "
            "conversations, and the connection is not encrypted.",
            file=sys.stderr,
        )
    try:
        served.serve()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CannotServe(
            f"The server cannot listen on {host}:{port} ({reason}); try another --port."
        ) from error
    return 0


def app_command(model: str | None, scheme: str | None, adapter: str | None) -> list[str]:
    """The command that opens the app for one browser tab.

    Raises:
        UnknownScheme, AdapterUnusable: if an option is invalid: nobody would read what the app says of it.
    """
    command = [sys.executable, "-m", "tqchat"]
    if model is not None:
        command += ["--model", model]
    if scheme is not None:
        command += ["--scheme", scheme_setting(scheme)]
    if adapter is not None:
        command += ["--adapter", adapter if adapter == NO_ADAPTER else str(_adapter_folder(adapter))]
    return command


def _adapter_folder(place: str) -> Path:
    from tqchat.engine.models import adapters

    return adapters.find(place).folder


def server(command: str, host: str = LOOPBACK, port: int = PORT, key: str | None = None) -> Any:
    """A server that runs ``command`` for each browser tab that has the key.

    Raises:
        ServeMissing: if textual-serve is not installed.
    """
    try:
        from tqchat.commands.servers.web_server import Server
    except ImportError as error:
        raise ServeMissing from error
    return Server(command, host, port, key or secrets.token_urlsafe(24))
