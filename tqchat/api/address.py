"""Addresses that a server of tqchat may listen on."""

from __future__ import annotations

import ipaddress
import socket

from tqchat.errors import TqchatError


class CannotServe(TqchatError):
    """The address cannot be listened on."""


class BadAddress(CannotServe):
    """The address, the port or the token is invalid."""

    exit_code = 2


def check_port(port: int) -> None:
    """
    Raises:
        BadAddress: if there is no such port.
    """
    if not 0 < port < 65_536:
        raise BadAddress(f"--port is {port}, but must be from 1 to 65535.")


def listening_address(host: str) -> str:
    """The one address to listen on: a numeric one in its usual form, or a name.

    Raises:
        BadAddress: if it is not an address of a machine, or stands for all addresses of this one, however it
            is written: ``0``, ``0x0``, ``::0``, ``::ffff:0.0.0.0``.
    """
    host = host.removeprefix("[").removesuffix("]")
    try:
        # Every form that the system accepts, not only those of ipaddress.
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM) if host else []
    except (OSError, UnicodeError, ValueError):
        raise BadAddress(f"--host is {host}, but must be an address or a name of this machine.") from None
    numeric = [_address(str(one[4][0])) for one in found]
    if not numeric or any(address.is_unspecified for address in numeric):
        raise BadAddress(f"--host is {host or 'empty'}, but must be the one address that clients will use.")
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
