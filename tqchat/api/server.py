"""The server in a thread: started and stopped by ``tqchat api`` and by the app."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable

from tqchat.api.address import CannotServe
from tqchat.api.desk import Ask, Desk, Visitor
from tqchat.api.errors import ApiMissing
from tqchat.api.guard import Guard
from tqchat.api.options import Options
from tqchat.engine.events import ModelInfo

STOP_TIMEOUT_S = 3.0
_GRACE_S = 1


class ApiServer:
    """Answers other programs until it is stopped. It can be started again."""

    def __init__(self, ask: Ask, model: Callable[[], ModelInfo | None], options: Options) -> None:
        """
        Args:
            ask: ``Engine.ask``.
            model: The model that answers; ``None`` while none is loaded. Called on the server's thread.
        """
        self._ask, self._model, self._options = ask, model, options
        self._running: _Running | None = None

    @property
    def address(self) -> str | None:
        """Address of the running server, e.g. ``http://127.0.0.1:8044/v1``; ``None`` if it does not."""
        return None if self._running is None else self._running.address

    @property
    def who(self) -> tuple[Visitor, ...]:
        """Requests in progress, oldest first."""
        return () if self._running is None else self._running.desk.visitors

    def start(self) -> str:
        """Listen, and answer on a thread of its own; returns the address.

        Raises:
            CannotServe: if it cannot listen there, or not without a token.
            ApiMissing: if Starlette or uvicorn are not installed.
        """
        if self._running is None:
            self._running = _Running(self._ask, self._model, self._options)
        return self._running.address

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop all answers and close all connections; waits at most ``timeout_s``."""
        running, self._running = self._running, None
        if running is not None:
            running.stop(timeout_s)


def check_installed() -> None:
    """
    Raises:
        ApiMissing: if Starlette or uvicorn are not installed.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ApiMissing from error


class _Running:
    def __init__(self, ask: Ask, model: Callable[[], ModelInfo | None], options: Options) -> None:
        check_installed()
        from uvicorn import Config, Server

        from tqchat.api.app import make
        from tqchat.api.connections import protocol

        host = options.checked_host()
        self.desk = Desk(ask, options.limits.requests)
        self._socket = _listen(host, options.port)
        port = self._socket.getsockname()[1]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        app = make(self.desk, model, Guard(options.hosts(host), options.token), options)
        self._server = Server(
            Config(
                app,
                http=protocol(options.limits),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=options.limits.header_bytes,
                timeout_keep_alive=int(options.limits.idle_s),
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        # They name addresses of clients, and a screen has no place for them.
        for name in ("uvicorn", "uvicorn.error"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._thread = threading.Thread(target=self._run, name="tqchat-api", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        async def serve() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
            await self._server.serve([self._socket])

        with contextlib.closing(self._socket):
            asyncio.run(serve())

    def stop(self, timeout_s: float) -> None:
        self.desk.close()
        self._server.should_exit = True
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)


def _listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        CannotServe: if that is not possible.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot(host, port, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise _cannot(host, port, error) from error
    return listener


def _cannot(host: str, port: int, error: OSError) -> CannotServe:
    reason = (error.strerror or str(error)).lower()
    return CannotServe(f"The server cannot listen on {host}:{port} ({reason}); try another --port.")
