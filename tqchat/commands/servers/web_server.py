"""The web server of ``tqchat serve``: textual-serve's, with access control and bounds on what clients send.

Imported only where textual-serve is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import shlex
import signal
import socket
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

# Imported by name so that type checking does not need the optional dependency.
web: Any = import_module("aiohttp.web")
_message_type: Any = import_module("aiohttp").WSMsgType
_Server: Any = import_module("textual_serve.server").Server
_AppService: Any = import_module("textual_serve.app_service").AppService

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

HEAD = """
<title>tqchat</title>
<script>
  addEventListener("DOMContentLoaded", () => {
    // The terminal makes this field when it opens, and takes keys only while the field has the focus.
    const focus = () => document.querySelector(".xterm-helper-textarea")?.focus();
    const opened = (changes, observer) => {
      if (document.querySelector(".xterm-helper-textarea")) {
        observer.disconnect();
        focus();
      }
    };
    new MutationObserver(opened).observe(document.body, { childList: true, subtree: true });
    addEventListener("focus", focus);
  });
</script>
"""
"""What textual-serve's page lacks: a title, and keys without a click first."""

MAX_TABS = 8
"""Tabs served at a time; each runs an app with a model of its own."""
MAX_UNADMITTED = 64
"""Connections that have not shown the key; the oldest is closed for a new one."""
ADMISSION_TIMEOUT_S = 10.0
"""Time for a new connection to send a request with the key."""
KEEP_ALIVE_S = 15.0
COLUMNS, ROWS = (8, 1_000), (4, 400)
"""Least and most cells of a tab's terminal; other sizes count as the nearest one."""
DEFAULT_SIZE = 80, 24
FONT_SIZES = 4, 100
MAX_MESSAGE_BYTES = 1 << 20
"""Longest message of a tab, such as a paste; a longer one ends the tab."""
INPUT_BYTES_PER_S, INPUT_BURST_BYTES, LEAST_MESSAGE_COST = 1 << 18, 2 << 20, 64
"""Rate of a tab's messages above which they wait."""
MAX_WAIT_S = 2.0
INPUT_TIMEOUT_S = 30.0
"""Time for an app to take a message."""
END_TIMEOUT_S = 5.0
"""Time for an app to save and exit after its tab was closed; then it is killed."""
LOGGED_PER_MINUTE = 10


class Connections:
    """Accepts connections. Those that have not shown the key are few, and closed after a while.

    An accept loop of its own: asyncio's logs hundreds of tracebacks a second when a program has no file
    descriptor left.
    """

    def __init__(self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._listener, self._protocol = listener, protocol
        self._unadmitted: dict[asyncio.BaseTransport, float] = {}

    async def accept(self) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listener)
            except OSError:
                # No file descriptors are left, or the client is gone already.
                self._close_oldest(len(self._unadmitted) // 2)
                await asyncio.sleep(0.1)
                continue
            self._forget_closed()
            self._close_oldest(MAX_UNADMITTED - 1)
            with contextlib.suppress(OSError):
                transport, _ = await loop.connect_accepted_socket(self._protocol, accepted)
                self._unadmitted[transport] = loop.time()

    async def close_late(self) -> None:
        """Close connections that do not show the key in time, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            self._forget_closed()
            late = loop.time() - ADMISSION_TIMEOUT_S
            self._close_oldest(sum(began > late for began in self._unadmitted.values()))

    def admit(self, transport: asyncio.BaseTransport | None) -> None:
        """A request on this connection had the key."""
        if transport is not None:
            self._unadmitted.pop(transport, None)

    def _forget_closed(self) -> None:
        for transport in [one for one in self._unadmitted if one.is_closing()]:
            del self._unadmitted[transport]

    def _close_oldest(self, kept: int) -> None:
        for transport in list(self._unadmitted)[: max(0, len(self._unadmitted) - kept)]:
            del self._unadmitted[transport]
            transport.abort()  # type: ignore[attr-defined]


class Allowance:
    """Limits the rate of a tab's messages: a few fast ones pass, a flood waits."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left, self._at = float(INPUT_BURST_BYTES), clock()

    def wait_s(self, size: int) -> float:
        """Seconds to wait before a message of this size is passed on."""
        now = self._clock()
        self._left = min(INPUT_BURST_BYTES, self._left + (now - self._at) * INPUT_BYTES_PER_S)
        self._at = now
        self._left -= max(size, LEAST_MESSAGE_COST)
        return min(MAX_WAIT_S, max(0.0, -self._left / INPUT_BYTES_PER_S))


class Tab(_AppService):  # type: ignore[misc]
    """The app of one browser tab, in a process group of its own."""

    _process: asyncio.subprocess.Process | None
    _task: asyncio.Task[None] | None

    async def _open_app_process(self, width: int = 80, height: int = 24) -> Any:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *shlex.split(self.command),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=self._build_environment(width, height),
            start_new_session=True,
        )
        self._stdin = self._process.stdin
        return self._process

    async def on_data(self, payload: bytes) -> None:
        """Pass output on. Once the tab is closed it is dropped, since the app would wait for a reader."""
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self.remote_write_bytes(payload)

    async def receive(self, text: str) -> list[object] | None:
        """Handle a message of the page; the answer to it, if any. Invalid ones are ignored."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return None
        match message:
            case ["stdin", str() as typed]:
                await self.send_bytes(typed.encode("utf-8", "replace"))
            case ["resize", {"width": width, "height": height}]:
                await self.set_terminal_size(*terminal_size(width, height))
            case ["ping", int() | float() | str() as data] if len(str(data)) <= 100:
                return ["pong", data]
            case ["blur"] | ["blur", _]:
                await self.blur()
            case ["focus"] | ["focus", _]:
                await self.focus()
        return None

    async def stop(self) -> None:
        """Let the app save and exit, and wait for that; kill it if it takes too long."""
        if self._task is None or self._process is None:
            return
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await self.send_meta({"type": "quit"})
                await asyncio.shield(self._task)
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._task
            await self._process.wait()
        self.stdin.close()
        self._task = None


class Server(_Server):  # type: ignore[misc]
    """textual-serve's server, restricted to requests with the key.

    Other users of this machine, and web pages in the user's own browser, can reach loopback too. So the
    printed link contains a secret key, and requests for another host or from another origin are rejected.
    """

    def __init__(self, command: str, host: str, port: int, key: str) -> None:
        address = f"[{host}]" if ":" in host else host
        super().__init__(command, host, port, title="tqchat", public_url=f"http://{address}:{port}")
        self._key = key.encode()
        self._connections: Connections | None = None
        self._tabs: set[Tab] = set()
        self._ending: set[asyncio.Task[None]] = set()

    def serve(self, debug: bool = False) -> None:
        """Serve until SIGINT or SIGTERM.

        Raises:
            OSError: if the address cannot be listened on.
        """
        with _listen(self.host, self.port) as listener:
            self.initialize_logging()
            asyncio.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        runner = web.AppRunner(
            await self._make_app(),
            handle_signals=False,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_S,
            lingering_time=1.0,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        connections = self._connections = Connections(listener, runner.server)
        work = [asyncio.create_task(connections.accept()), asyncio.create_task(connections.close_late())]
        print(
            f"tqchat is served at {self.public_url}/?key={self._key.decode()}\nPress Ctrl+C to stop.",
            flush=True,
        )
        await stopped.wait()
        for task in work:
            task.cancel()
        await runner.cleanup()

    def initialize_logging(self) -> None:
        """Log errors, a few a minute: every client can cause some."""
        handler = logging.StreamHandler()
        handler.addFilter(_Sparse())
        logging.basicConfig(level=logging.ERROR, handlers=[handler], format="tqchat: %(name)s: %(message)s")

    async def on_startup(self, app: Any) -> None:
        """Replace textual-serve's greeting."""

    async def on_shutdown(self, app: Any) -> None:
        """Let the apps of open tabs save and exit."""
        await asyncio.gather(*(self._end(tab) for tab in self._tabs), *self._ending)

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
        if request.host != here or (origin is not None and _netloc(origin) != here):
            raise web.HTTPForbidden(text=f"tqchat is served at {self.public_url} only; open that address.")
        given = request.query.get("key") or request.cookies.get(COOKIE, "")
        # Headers may contain any bytes.
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._key):
            raise web.HTTPForbidden(
                text="The key is missing or wrong: open the link that `tqchat serve` printed."
            )
        if self._connections is not None:
            self._connections.admit(request.transport)
        if request.path == "/" and "key" in request.query:
            moved = web.HTTPFound("/")
            moved.set_cookie(COOKIE, self._key.decode(), httponly=True, samesite="Strict")
            raise moved
        if "fontsize" in request.query and _within(request.query["fontsize"], FONT_SIZES) is None:
            raise web.HTTPBadRequest(
                text="fontsize must be a whole number from {} to {}.".format(*FONT_SIZES)
            )
        response = await handler(request)
        if not response.prepared:
            response.headers["Content-Security-Policy"] = POLICY
            response.headers["Referrer-Policy"] = "no-referrer"
        return response

    async def handle_index(self, request: Any) -> Any:
        """The page of a tab."""
        response = await super().handle_index(request)
        response.text = response.text.replace("<head>", f"<head>{HEAD}", 1)
        return response

    async def handle_websocket(self, request: Any) -> Any:
        """Run an app for a tab until either ends."""
        websocket = web.WebSocketResponse(heartbeat=15, max_msg_size=MAX_MESSAGE_BYTES)
        await websocket.prepare(request)
        if len(self._tabs) >= MAX_TABS:
            await websocket.send_bytes(f"{MAX_TABS} tabs are open; close one and reload this page.".encode())
            await websocket.close()
            return websocket
        tab = Tab(
            self.command,
            write_bytes=websocket.send_bytes,
            write_str=websocket.send_str,
            close=websocket.close,
            download_manager=self.download_manager,
        )
        self._tabs.add(tab)
        try:
            await tab.start(*terminal_size(request.query.get("width"), request.query.get("height")))
            with contextlib.suppress(TimeoutError):
                await self._process_messages(websocket, tab)
        finally:
            if request.transport is not None:
                # Nobody reads any more: an app that waits for its output to be read could not exit.
                request.transport.abort()
            # In a task of its own: the handler of a lost connection may be cancelled.
            ending = asyncio.create_task(self._end(tab))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            await asyncio.shield(ending)
        return websocket

    async def _end(self, tab: Tab) -> None:
        try:
            await tab.stop()
        finally:
            self._tabs.discard(tab)

    async def _process_messages(self, websocket: Any, tab: Tab) -> None:
        allowance = Allowance(asyncio.get_running_loop().time)
        async for message in websocket:
            if message.type != _message_type.TEXT:
                continue
            if wait := allowance.wait_s(len(message.data)):
                await asyncio.sleep(wait)
            # An app that does not read its input is killed, as one whose tab was closed.
            async with asyncio.timeout(INPUT_TIMEOUT_S):
                answer = await tab.receive(message.data)
            if answer is not None:
                with contextlib.suppress(ConnectionError):
                    await websocket.send_json(answer)


def _listen(host: str, port: int) -> socket.socket:
    """Listen on the first address of a name that this machine has."""
    failed: OSError | None = None
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            return socket.create_server(address[:2], family=family, backlog=MAX_UNADMITTED)
        except OSError as error:
            failed = failed or error
    raise failed or OSError("no address was found")


def terminal_size(width: object, height: object) -> tuple[int, int]:
    """The size of a terminal that a client asked for, within bounds."""
    columns, rows = (
        default if not isinstance(wanted, int | float | str) else _nearest(wanted, bounds, default)
        for wanted, bounds, default in zip((width, height), (COLUMNS, ROWS), DEFAULT_SIZE, strict=True)
    )
    return columns, rows


def _nearest(wanted: float | str, bounds: tuple[int, int], default: int) -> int:
    try:
        return max(bounds[0], min(int(wanted), bounds[1]))
    except (ValueError, OverflowError):
        return default


def _within(wanted: str, bounds: tuple[int, int]) -> int | None:
    """A whole number within bounds, or nothing."""
    number = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 10 else -1
    return number if bounds[0] <= number <= bounds[1] else None


def _netloc(address: str) -> str | None:
    try:
        return urlsplit(address).netloc
    except ValueError:
        return None


class _Sparse(logging.Filter):
    """Passes a few records a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._minute, self._count = 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this one is passed."""
        minute = int(record.created // 60)
        self._count = self._count + 1 if minute == self._minute else 1
        self._minute = minute
        record.exc_info = record.exc_text = None
        return self._count <= LOGGED_PER_MINUTE
