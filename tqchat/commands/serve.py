"""``tqchat serve``: serves the app to a browser, by default on this machine only."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import secrets
import shlex
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqchat.engine.commands import NO_ADAPTER
from tqchat.errors import TqchatError
from tqchat.kv.scheme import scheme_setting

LOOPBACK = "127.0.0.1"
PORT = 8043
COOKIE = "tqchat_key"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'unsafe-inline'",
        "style-src 'self' 'unsafe-inline'",
        "font-src 'self' data:",
        "img-src 'self' data:",
        "connect-src 'self'",
        "frame-ancestors 'none'",
    )
)
"""Content security policy: the page may load its own files only, from no other server."""


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
    if host in ("0.0.0.0", "::"):
        raise CannotServe(f"--host is {host}, but must be the one address that browsers will open.")
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


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def server(command: str, host: str = LOOPBACK, port: int = PORT, key: str | None = None) -> Any:
    """A server that runs ``command`` for each browser tab that has the key.

    Other users of this machine, and web pages in the user's own browser, can reach loopback too. So the
    printed link contains a secret key, and requests for another host or from another origin are rejected.

    Raises:
        ServeMissing: if textual-serve is not installed.
    """
    try:
        # Imported by name so that type checking does not need the optional dependency.
        web: Any = import_module("aiohttp.web")
        base: Any = import_module("textual_serve.server").Server
    except ImportError as error:
        raise ServeMissing from error
    secret = key or secrets.token_urlsafe(24)

    class Guarded(base):  # type: ignore[misc]
        """textual-serve's server, restricted to requests with the key."""

        def initialize_logging(self) -> None:
            logging.basicConfig(level=logging.WARNING)

        async def on_startup(self, app: Any) -> None:
            print(f"tqchat is served at {self.public_url}/?key={secret}\nPress Ctrl+C to stop.", flush=True)

        async def _make_app(self) -> Any:
            app = await super()._make_app()

            async def guard(request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
                return await self.admit(request, handler)

            app.middlewares.append(web.middleware(guard))
            return app

        async def admit(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
            """Check host, origin and key of a request; store the key as a cookie."""
            here = urlsplit(self.public_url).netloc
            origin = request.headers.get("Origin")
            given = request.query.get("key") or request.cookies.get(COOKIE, "")
            if request.host != here or (origin is not None and urlsplit(origin).netloc != here):
                raise web.HTTPForbidden(
                    text=f"tqchat is served at {self.public_url} only; open that address."
                )
            if not hmac.compare_digest(given.encode(), secret.encode()):
                raise web.HTTPForbidden(
                    text="The key is missing or wrong: open the link that `tqchat serve` printed."
                )
            if request.path == "/" and "key" in request.query:
                moved = web.HTTPFound("/")
                moved.set_cookie(COOKIE, secret, httponly=True, samesite="Strict")
                raise moved
            response = await handler(request)
            if not response.prepared:
                response.headers["Content-Security-Policy"] = POLICY
                response.headers["Referrer-Policy"] = "no-referrer"
            return response

    address = f"[{host}]" if ":" in host else host
    return Guarded(command, host, port, title="tqchat", public_url=f"http://{address}:{port}")
