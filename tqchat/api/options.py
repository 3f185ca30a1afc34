"""Options of the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tqchat.api.address import BadAddress, check_port, is_loopback, listening_address
from tqchat.api.asked import Defaults
from tqchat.api.guard import LOOPBACK_NAMES, is_token
from tqchat.api.usual import LOOPBACK, PORT, TOKEN_VARIABLE


@dataclass(frozen=True)
class Limits:
    """Limits on what clients send and on how long that takes.

    Attributes:
        body_bytes: Longest body of a request.
        bodies_bytes: All bodies that are being read or answered, together.
        header_bytes: Longest head of a request.
        header_s, body_s: Time to send the head and the body of a request.
        write_s: Time in which a client must take something of its answer.
        idle_s: Time for which a connection stays open without a request.
        requests: Requests that are answered or wait.
        connections: Open connections; the one that was idle longest is closed for a new one.
    """

    body_bytes: int = 8 << 20
    bodies_bytes: int = 64 << 20
    header_bytes: int = 32 << 10
    header_s: float = 10.0
    body_s: float = 30.0
    write_s: float = 30.0
    idle_s: float = 60.0
    requests: int = 64
    connections: int = 256


@dataclass(frozen=True)
class Options:
    """Address, access rules and defaults of the server.

    Attributes:
        port: 0 for any free port.
        token: Must be in every request; ``None``: none is needed, which is allowed on loopback only.
        defaults: Read for each request, so that settings may change.
    """

    defaults: Callable[[], Defaults]
    host: str = LOOPBACK
    port: int = PORT
    token: str | None = None
    limits: Limits = field(default_factory=Limits)

    def checked_host(self) -> str:
        """The address to listen on.

        Raises:
            BadAddress: if it, the port or the token is invalid, or a token is needed.
        """
        if self.port:
            check_port(self.port)
        host = listening_address(self.host)
        if self.token is not None and not is_token(self.token):
            raise BadAddress("The token must consist of visible ASCII characters, without spaces.")
        if self.token is None and not is_loopback(host):
            raise BadAddress(
                f"{host} can be reached from other machines: set a token, with --token or in the environment "
                f"variable {TOKEN_VARIABLE}."
            )
        return host

    def hosts(self, host: str) -> frozenset[str]:
        """The names by which clients may address the server that listens on ``host``."""
        return frozenset({host, self.host.strip("[]")}) | (
            LOOPBACK_NAMES if is_loopback(host) else frozenset()
        )
