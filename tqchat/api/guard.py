"""Checks before anything else: host, origin, token."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from tqchat.api.errors import ApiError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_TOKEN = re.compile(r"[!-~]+")


class Guard:
    """Refuses requests that were not meant for this server, or have not its token.

    Web pages in the user's browser can reach loopback. A page whose own name leads to this address (DNS
    rebinding) is known by the header ``Host``, all others by ``Origin``.
    """

    def __init__(self, hosts: Iterable[str], token: str | None) -> None:
        """
        Args:
            hosts: Names and addresses of this server, without ports: a port may be forwarded.
            token: Must be in every request, if there is one.
        """
        self._hosts = frozenset(host.lower() for host in hosts)
        self._token = None if token is None else token.encode()

    def check(self, headers: Mapping[str, str]) -> None:
        """Check a request's headers; their names are in lower case.

        Raises:
            ApiError: if it is refused.
        """
        host = headers.get("host", "")
        name, origin = _name(f"http://{host}"), headers.get("origin")
        if name is None or name.lower() not in self._hosts:
            raise _forbidden("The header Host does not name this server.")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise _forbidden("Web pages of other servers may not ask this one.")
        if self._token is None:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        # Headers may contain any bytes.
        same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._token)
        if kind.lower() != "bearer" or not same:
            raise ApiError(
                "The token is missing or wrong: send the header `Authorization: Bearer TOKEN`.",
                status=401,
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer", "Connection": "close"},
            )


def is_token(text: str) -> bool:
    """Whether a text can be sent as a token: visible ASCII without spaces."""
    return _TOKEN.fullmatch(text) is not None


def _forbidden(message: str) -> ApiError:
    return ApiError(message, status=403, code="forbidden", headers={"Connection": "close"})


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
