"""``tqchat serve``: access control of the server, and the app in a page."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pyte
import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, CookieJar, WSMsgType, WSServerHandshakeError
from aiohttp.test_utils import TestServer

from tests.adapters import write_adapter
from tests.e2e.terminal import stored_messages
from tqchat.commands.servers import serve, web_server
from tqchat.errors import TqchatError
from tqchat.paths import Paths
from tqchat.store.database import Database

KEY = "the-key"
TIMEOUT_S = 120.0


@asynccontextmanager
async def serving(*command: str) -> AsyncIterator[web_server.Server]:
    """A server of this command on a free port; its ``public_url`` is the address."""
    guarded = serve.server(shlex.join([sys.executable, *command]), key=KEY)
    running = TestServer(await guarded._make_app(), host="127.0.0.1")
    await running.start_server()
    guarded.public_url = f"http://127.0.0.1:{running.port}"
    yield guarded
    await running.close()


@pytest.fixture
async def server() -> AsyncIterator[web_server.Server]:
    async with serving("-m", "tqchat") as running:
        yield running


@pytest.fixture
def url(server: web_server.Server) -> str:
    return server.public_url


@pytest.fixture
async def browser() -> AsyncIterator[ClientSession]:
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as session:
        yield session


@asynccontextmanager
async def tab_of(
    server: web_server.Server, browser: ClientSession, width: int = 100, height: int = 30
) -> AsyncIterator[ClientWebSocketResponse]:
    """A tab of the browser, which has opened the page with the key."""
    async with browser.get(f"{server.public_url}/?key={KEY}"):
        pass
    address = f"{server.public_url}/ws?width={width}&height={height}"
    async with browser.ws_connect(address, headers={"Origin": server.public_url}) as page:
        yield page


class Page:
    """What the terminal in a page shows; the app draws only what changed."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self._screen = pyte.Screen(100, 30)
        self._stream = pyte.ByteStream(self._screen)

    async def sees(self, text: str) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while text not in (shown := "\n".join(self._screen.display)):
                    self._stream.feed(await self._socket.receive_bytes())
        except TimeoutError:
            pytest.fail(f"{text!r} is not on the screen:\n{shown}")

    async def write(self, text: str) -> None:
        await self._socket.send_str(json.dumps(["stdin", text]))


async def test_requests_without_the_key_are_forbidden(url: str, browser: ClientSession) -> None:
    for path in ("/", "/?key=wrong", "/ws", "/static/css/xterm.css"):
        async with browser.get(url + path) as answer:
            assert answer.status == 403, path


async def test_the_key_opens_the_page_with_a_content_security_policy(
    url: str, browser: ClientSession
) -> None:
    async with browser.get(f"{url}/?key={KEY}") as answer:
        assert answer.status == 200 and str(answer.url) == f"{url}/", "the key does not stay in the address"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        page = await answer.text()
        assert "<title>tqchat</title>" in page
        assert "xterm-helper-textarea" in page, "the terminal has the keyboard from the start"


async def test_another_host_or_origin_is_forbidden(url: str, browser: ClientSession) -> None:
    async with browser.get(f"{url}/?key={KEY}", headers={"Host": "evil.example"}) as answer:
        assert answer.status == 403
    async with browser.get(f"{url}/?key={KEY}"):
        pass
    with pytest.raises(WSServerHandshakeError):
        await browser.ws_connect(f"{url}/ws", headers={"Origin": "http://evil.example"})


@pytest.mark.parametrize(
    ("host", "only_here"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_is_loopback(host: str, only_here: bool) -> None:
    assert serve.is_loopback(host) is only_here


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_wildcard_addresses_are_refused(host: str) -> None:
    with pytest.raises(serve.CannotServe, match="the one address that clients will use"):
        serve.main(host=host, port=8043, model=None, scheme=None)


@pytest.mark.parametrize("port", [0, 65_536, -1])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(serve.CannotServe, match="from 1 to 65535"):
        serve.main(host="127.0.0.1", port=port, model=None, scheme=None)


def test_the_app_gets_the_options(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(tmp_path / "pirate", llama_folder)
    monkeypatch.chdir(tmp_path)
    command = serve.app_command("org/model", "turbo4", "pirate")
    assert command[3:] == [
        "--model",
        "org/model",
        "--scheme",
        "turbo4",
        "--adapter",
        str(tmp_path / "pirate"),
    ]
    assert serve.app_command(None, None, "off")[3:] == ["--adapter", "off"]
    with pytest.raises(TqchatError, match="There is no adapter folder 'nowhere'"):
        serve.main(host="127.0.0.1", port=8043, model=None, scheme=None, adapter="nowhere")


def test_an_address_in_use_is_reported() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(serve.CannotServe, match="cannot listen on"):
            serve.main(host="127.0.0.1", port=taken.getsockname()[1], model=None, scheme=None)


@pytest.mark.slow
# asyncio warns that the app's process ends after the test's event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_the_app_in_the_page_ends_in_order(
    paths: Paths,
    server: web_server.Server,
    browser: ClientSession,
    llama_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tab that is closed before anything was sent, one that is closed during a reply, one that is quit."""
    monkeypatch.setattr(web_server, "END_TIMEOUT_S", 60.0)  # an app that is killed after that fails the test
    # A model that goes on until it is stopped.
    model = Path(shutil.copytree(llama_folder, paths.data_dir / "endless"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 100_000, "eos_token_id": []})
    )
    (model / "generation_config.json").unlink()
    paths.config_file.write_text(f"model = '{model}'\ntemperature = 0.0\nmax_tokens = 90000\n")

    async with tab_of(server, browser) as page:
        await Page(page).sees("begin")
        await Page(page).write("Not sent yet")
        await Page(page).sees("Not sent yet")
    await all_ended(server)
    assert paths.unsent_text.read_text() == "Not sent yet"

    async with tab_of(server, browser) as page:
        await Page(page).sees("Not sent yet")
        (tab,) = server._tabs
        await Page(page).write("\r")
        async with asyncio.timeout(TIMEOUT_S):
            while not any(one.role == "assistant" and one.content for one in stored_messages(paths)):
                await page.receive_bytes()
    await all_ended(server)
    assert tab._process is not None and tab._process.returncode == 0
    question, reply = stored_messages(paths)
    assert question.content == "Not sent yet" and not paths.unsent_text.exists()
    assert reply.status == "stopped" and reply.content and reply.tokens
    with Database(paths.database) as database:
        assert database.leases.holder_pid(reply.conversation_id) is None

    async with tab_of(server, browser) as page:
        await Page(page).sees("Not sent yet")
        await Page(page).write("\x11")
        async with asyncio.timeout(TIMEOUT_S):
            async for _ in page:
                pass  # until the app has saved and exited


async def all_ended(server: web_server.Server) -> None:
    """Wait until the apps of all tabs have ended."""
    async with asyncio.timeout(TIMEOUT_S):
        while server._tabs:
            await asyncio.sleep(0.02)


WILDCARDS = "0 0x0 00.0.0.0 0.0 ::0 0:: [::] [0.0.0.0] ::ffff:0.0.0.0 ::ffff:0:0 0:0:0:0:0:0:0:0"


@pytest.mark.parametrize("host", [*WILDCARDS.split(), ""])
def test_all_addresses_are_refused_however_they_are_written(host: str) -> None:
    with pytest.raises(serve.CannotServe, match="the one address that clients will use"):
        serve.main(host=host, port=8043, model=None, scheme=None)


@pytest.mark.parametrize("host", ["no such host", "1.2.3.4.5", "\ud800", "x" * 300, "[", "a\0b"])
def test_what_is_no_address_is_refused(host: str) -> None:
    with pytest.raises(serve.CannotServe, match="--host"):
        serve.main(host=host, port=8043, model=None, scheme=None)


@pytest.mark.parametrize(
    ("written", "used"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("[::1]", "::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
    ],
)
def test_an_address_is_used_in_the_form_that_browsers_send(written: str, used: str) -> None:
    assert serve.listening_address(written) == used
    assert serve.is_loopback(used)


async def status_of(port: int, *headers: bytes, path: bytes = b"/") -> bytes:
    """The status line of the answer to a request of raw bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    host = b"Host: 127.0.0.1:%d" % port
    writer.write(b"\r\n".join([b"GET %s HTTP/1.1" % path, host, *headers, b"Connection: close", b"", b""]))
    await writer.drain()
    line = await reader.readline()
    writer.close()
    return line


HEADERS = (b"Cookie: tqchat_key=\xff", b"Cookie: \x80=\xff", b"Origin: http://[", b"Origin: \xff", b"X: \xff")


@pytest.mark.parametrize("header", HEADERS)
async def test_headers_of_any_bytes_are_forbidden_without_the_key(url: str, header: bytes) -> None:
    port = int(url.rpartition(":")[2])
    assert b" 403 " in await status_of(port, header)
    assert b" 403 " in await status_of(port, header, path=b"/?key=%ff%fe")


@pytest.mark.parametrize("size", ["0", "-1", "99999", "9" * 5000, "x", "\u0664"])
async def test_font_sizes_are_bounded(url: str, browser: ClientSession, size: str) -> None:
    async with browser.get(f"{url}/?key={KEY}"):
        pass
    async with browser.get(f"{url}/", params={"fontsize": size}) as answer:
        assert answer.status == 400


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (100_000, 100_000, (1_000, 400)),
        ("9" * 5000, "1e9", (80, 24)),
        (-5, 0, (8, 4)),
        (float("inf"), float("nan"), (80, 24)),
        (None, [], (80, 24)),
        ("120", 40.5, (120, 40)),
        (10**400, True, (1_000, 4)),
    ],
)
def test_sizes_of_terminals_are_bounded(width: object, height: object, size: tuple[int, int]) -> None:
    assert web_server.terminal_size(width, height) == size


def test_a_flood_of_messages_waits_and_typing_does_not() -> None:
    now = 0.0
    allowance = web_server.Allowance(lambda: now)
    for _ in range(1_000):
        now += 0.01
        assert allowance.wait_s(10) == 0.0
    waits = [allowance.wait_s(web_server.MAX_MESSAGE_BYTES) for _ in range(5)]
    assert waits[-1] == web_server.MAX_WAIT_S
    now += 60
    assert allowance.wait_s(10) == 0.0


PAGE = """
import os, sys
def packet(kind, data):
    os.write(1, kind + len(data).to_bytes(4, "big") + data)
os.write(1, b"__GANGLION__\\n")
packet(b"D", b"begin " + os.environ["COLUMNS"].encode())
while data := os.read(0, 65536):
    packet(b"D", b"got " + data)
"""
"""An app that shows the packets it gets, and neither quits when it is asked to nor reads a signal."""


@pytest.fixture
async def echo(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[web_server.Server]:
    monkeypatch.setattr(web_server, "END_TIMEOUT_S", 0.2)
    async with serving("-c", PAGE) as running:
        yield running


WRONG_MESSAGES = (
    *("", "{", "[]", "1", '["stdin"]', '["stdin", 5]', '["resize"]', '["resize", 1]', '["unknown", 2]'),
    *('["resize", {"width": "x"}]', '["ping", {"a": 1}]', "[" * 100_000, "9" * 5000),
)


async def test_messages_of_a_tab_are_checked(echo: web_server.Server, browser: ClientSession) -> None:
    async with tab_of(echo, browser, width=100_000, height=100_000) as page:
        assert (await page.receive_bytes()) == b"begin 1000"
        for wrong in WRONG_MESSAGES:
            await page.send_str(wrong)
        await page.send_str(json.dumps(["resize", {"width": 10**9, "height": -1}]))
        got = await page.receive_bytes()
        assert json.loads(got[got.index(b"{") :]) == {"type": "resize", "width": 1000, "height": 4}
        await page.send_str(json.dumps(["stdin", "\ud800x"]))
        assert (await page.receive_bytes()).endswith(b"?x")
        await page.send_str(json.dumps(["ping", 7]))
        assert await page.receive_json() == ["pong", 7]
        (tab,) = echo._tabs
        await page.send_str(json.dumps(["stdin", "x" * (web_server.MAX_MESSAGE_BYTES + 1)]))
        assert (await page.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR)
    await all_ended(echo)
    assert tab._process is not None and tab._process.returncode == -signal.SIGKILL


async def test_too_many_tabs_get_a_sentence(
    echo: web_server.Server, browser: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, "MAX_TABS", 1)
    async with tab_of(echo, browser) as first:
        assert (await first.receive_bytes()).startswith(b"begin")
        async with tab_of(echo, browser) as second:
            assert b"close one" in await second.receive_bytes()


async def test_connections_without_the_key_do_not_keep_others_out() -> None:
    """Of more half-open connections than may wait, the oldest are closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = serve.server("true", port=port, key=KEY)
        serving = asyncio.create_task(server._serve(listener))
        half_open = []
        for _ in range(3 * web_server.MAX_UNADMITTED):
            half_open.append(await asyncio.open_connection("127.0.0.1", port))
            half_open[-1][1].write(b"GET / HTTP/1.1\r\n")
        assert b" 403 " in await status_of(port)
        assert b" 302 " in await status_of(port, path=b"/?key=" + KEY.encode())
        assert (
            server._connections is not None
            and len(server._connections._unadmitted) <= web_server.MAX_UNADMITTED
        )
        for _, writer in half_open:
            writer.close()
        os.kill(os.getpid(), signal.SIGTERM)
        await serving


def test_a_server_without_file_descriptors_stays_silent_and_recovers() -> None:
    few = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48));"
        "runpy.run_module('tqchat', run_name='__main__', alter_sys=True)"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-c", few, "serve", "--port", str(port)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as served:
        assert served.stdout is not None and served.stderr is not None
        try:
            key = re.search(rb"key=(\S+)", served.stdout.readline())
            assert key is not None
            many = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
            for one in many:
                one.close()
            answered = asyncio.run(status_of(port, path=b"/?key=" + key[1]))
            assert b" 302 " in answered
        finally:
            served.terminate()
        assert len(served.stderr.read()) < 5_000
