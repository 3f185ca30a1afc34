"""``tqchat serve``: serves the app to a browser, by default on this machine only."""

from __future__ import annotations

import ipaddress
import secrets
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

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


class CannotServe(TqchatError):
    """The address is invalid or cannot be listened on."""


def main(*, host: str, port: int, model: str | None, scheme: str | None, adapter: str | None = None) -> int:
    """Serve until Ctrl+C.

    Raises:
        ServeMissing: if textual-serve is not installed.
        CannotServe: if the address is taken or not this machine's.
        AdapterUnusable: if the adapter cannot be loaded.
    """
    if not 0 < port < 65_536:
        raise CannotServe(f"--port is {port}, but must be from 1 to 65535.")
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


def listening_address(host: str) -> str:
    """The one address to listen on: a numeric one in its usual form, or a name.

    Raises:
        CannotServe: if it is not an address of a machine, or stands for all addresses of this one, however it
            is written: ``0``, ``0x0``, ``::0``, ``::ffff:0.0.0.0``.
    """
    host = host.removeprefix("[").removesuffix("]")
    try:
        # Every form that the system accepts, not only those of ipaddress.
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM) if host else []
    except (OSError, UnicodeError, ValueError):
        raise CannotServe(f"--host is {host}, but must be an address or a name of this machine.") from None
    numeric = [_address(str(one[4][0])) for one in found]
    if not numeric or any(address.is_unspecified for address in numeric):
        raise CannotServe(
            f"--host is {host or 'empty'}, but must be the one address that browsers will open."
        )
    try:
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except OSError:
        return host
    return str(numeric[0])


def _address(numeric: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address; one of IPv4 in the form of IPv6 as that of IPv4."""
    address = ipaddress.ip_address(numeric)
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    try:
        return _address(host).is_loopback
    except ValueError:
        return host == "localhost"


def server(command: str, host: str = LOOPBACK, port: int = PORT, key: str | None = None) -> Any:
    """A server that runs ``command`` for each browser tab that has the key.

    Raises:
        ServeMissing: if textual-serve is not installed.
    """
    try:
        from tqchat.commands.web_server import Server
    except ImportError as error:
        raise ServeMissing from error
    return Server(command, host, port, key or secrets.token_urlsafe(24))
