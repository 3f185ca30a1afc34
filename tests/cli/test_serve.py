"""``tqchat serve``: access control of the server, and the app in a page."""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, CookieJar, WSMsgType, WSServerHandshakeError
from aiohttp.test_utils import TestServer

from tests.adapters import write_adapter
from tqchat.commands import serve
from tqchat.errors import TqchatError
from tqchat.paths import Paths

KEY = "the-key"


@pytest.fixture
async def url() -> AsyncIterator[str]:
    guarded = serve.server(shlex.join([sys.executable, "-m", "tqchat"]), key=KEY)
    running = TestServer(await guarded._make_app(), host="127.0.0.1")
    await running.start_server()
    guarded.public_url = f"http://127.0.0.1:{running.port}"
    yield guarded.public_url
    await running.close()


@pytest.fixture
async def browser() -> AsyncIterator[ClientSession]:
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as session:
        yield session


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
        assert "tqchat" in await answer.text()


async def test_another_host_or_origin_is_forbidden(url: str, browser: ClientSession) -> None:
    async with browser.get(f"{url}/?key={KEY}", headers={"Host": "evil.example"}) as answer:
        assert answer.status == 403
    async with browser.get(f"{url}/?key={KEY}"):
        pass
    with pytest.raises(WSServerHandshakeError):
        await browser.ws_connect(f"{url}/ws", headers={"Origin": "http://evil.example"})


@pytest.mark.slow
# asyncio warns that the app's process ends after the test's event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_the_app_runs_in_the_page(url: str, browser: ClientSession) -> None:
    async with browser.get(f"{url}/?key={KEY}"):
        pass
    async with browser.ws_connect(f"{url}/ws?width=100&height=30", headers={"Origin": url}) as page:
        shown = b""
        async for message in page:
            if message.type == WSMsgType.BINARY:
                shown += message.data
            if b"begin" in shown:
                break
        assert b"begin" in shown
        await page.send_str(json.dumps(["stdin", "\x11"]))
        async for _ in page:
            pass  # until the app has saved and exited


@pytest.mark.parametrize(
    ("host", "only_here"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_is_loopback(host: str, only_here: bool) -> None:
    assert serve.is_loopback(host) is only_here


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_wildcard_addresses_are_refused(host: str) -> None:
    with pytest.raises(serve.CannotServe, match="the one address that browsers will open"):
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
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_closed_tab_ends_the_app_in_order(url: str, browser: ClientSession, paths: Paths) -> None:
    async with browser.get(f"{url}/?key={KEY}"):
        pass
    async with browser.ws_connect(f"{url}/ws?width=100&height=30", headers={"Origin": url}) as page:
        shown = b""
        async for message in page:
            if message.type == WSMsgType.BINARY:
                shown += message.data
            if b"Ready" in shown:
                break
        await page.send_str(json.dumps(["stdin", "Not sent yet"]))
        async for message in page:
            shown += message.data if message.type == WSMsgType.BINARY else b""
            if b"yet" in shown:
                break
    while not paths.unsent_text.exists():
        await asyncio.sleep(0.05)
    assert paths.unsent_text.read_text() == "Not sent yet"
