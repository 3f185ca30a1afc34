"""Who may ask, how much, and what clients that behave badly can do."""

from __future__ import annotations

import copy
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.api.client import CHAT, TIMEOUT_S, Client
from tests.api.conftest import Start, options
from tqchat.api.address import CannotServe
from tqchat.api.options import Limits
from tqchat.api.server import ApiServer
from tqchat.engine.commands import ToolCall
from tqchat.engine.events import Done, Event, Failed, TextDelta, TokenCounts, ToolCalled
from tqchat.engine.requests.request import Request, Ticket
from tqchat.kv.memory import MemoryReport

BODY = b'{"messages": [{"role": "user", "content": "Hello!"}], "stream": true}'

UPGRADE = b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\nConnection: close, upgrade\r\nUpgrade: websocket\r\n\r\n"
ODD = (b"\x00", b"\r\n", b'"', b"{", b"[", b"\\ud800", b"1e999", b"null")
"""What mutations put in."""
WHOLE = (
    b'{"model": "tiny", "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", '
    b'"content": [{"type": "text", "text": "Hi"}]}], "max_tokens": 1, "temperature": 0.5, "stop": ["x"], '
    b'"stream": true, "tools": [], "seed": 5, "cache_scheme": "turbo4"}'
)
ODD_VALUES = (None, True, 0, -1, 1, 1e308, 10**30, "", "x" * 5_000, "\ud800", [], {}, [[]], {"text": 1})
STATUSES = (b"", b"100", b"200", b"400", b"403", b"404", b"405", b"413", b"431")


def head(length: int, *lines: str) -> bytes:
    host = () if any(line.lower().startswith("host:") for line in lines) else ("Host: localhost",)
    return "\r\n".join([f"POST {CHAT} HTTP/1.1", *host, *lines, f"Content-Length: {length}", "", ""]).encode()


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Scripted:
    """Takes requests in the engine's place; a thread of a test answers them."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []

    def __call__(self, request: Request, receive: Callable[[Event], None]) -> Ticket:
        self.tickets.append(Ticket(request, receive))
        return self.tickets[-1]

    def say(self, *events: Callable[[str], Event]) -> None:
        ticket = self.tickets[-1]
        for event in events:
            ticket.receive(event(ticket.id))

    def ask(self, client: Client, *events: Callable[[str], Event], **fields: object) -> list[Any]:
        """The chunks that events become."""

        def tell() -> None:
            eventually(lambda: len(self.tickets) == 1)
            self.say(*events)

        thread = threading.Thread(target=tell)
        thread.start()
        chunks = client.chat(stream=True, **fields).chunks
        thread.join()
        return chunks


def text(piece: str, part: str = "answer", takes: bool = False) -> Callable[[str], Event]:
    return lambda id: TextDelta(id, piece, part, takes)  # type: ignore[arg-type]


def done(answer: str = "", reasoning: str = "") -> Callable[[str], Event]:
    counts, report = TokenCounts(5, 0, 0, 5, 1), MemoryReport("turbo4", 6, ())
    return lambda id: Done(id, answer, "stop", counts, 1.0, 1.0, 0.1, "turbo4", "tiny", report, reasoning)


def test_other_names_and_origins_are_refused(client: Client) -> None:
    for headers in (
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Host": "[::1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
    ):
        for path in ("/health", "/v1/models", "/nothing"):
            answer = client.ask("GET", path, headers=headers)
            assert (answer.status, answer.error["code"]) == (403, "forbidden"), headers
    own = f"127.0.0.1:{client.port}"
    for headers in ({"Host": "localhost"}, {"Host": "[::1]:9"}, {"Host": own, "Origin": f"http://{own}"}):
        assert client.ask("GET", "/health", headers=headers).status == 200


def test_a_token_is_required_everywhere(start: Start) -> None:
    client = Client.of(start(Scripted(), token="s3cret"))
    for header in (None, "Bearer wrong", "s3cret", "Basic s3cret", "Bearer s3cre\xfc", "Bearer "):
        headers = {} if header is None else {"Authorization": header}
        for path in ("/health", "/v1/models", "/nothing"):
            answer = client.ask("GET", path, headers=headers)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key"), header
    assert client.ask("GET", "/health", headers={"Authorization": "bearer s3cret"}).status == 200


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"host": "192.0.2.1"}, "TQCHAT_API_TOKEN"),
        ({"host": "192.0.2.1", "token": "t"}, "cannot listen"),
        ({"host": "0.0.0.0", "token": "t"}, "the one address"),
        ({"token": "two words"}, "visible ASCII"),
    ],
)
def test_what_it_does_not_listen_on(changes: dict[str, str], says: str) -> None:
    with pytest.raises(CannotServe, match=says):
        ApiServer(Scripted(), lambda: None, options(**changes)).start()


def test_a_port_that_is_taken(api: ApiServer) -> None:
    from dataclasses import replace

    taken = ApiServer(Scripted(), lambda: None, replace(options(), port=Client.of(api).port))
    with pytest.raises(CannotServe, match="try another --port"):
        taken.start()
    assert taken.address is None


def test_without_a_model_requests_are_told_to_come_back() -> None:
    server = ApiServer(Scripted(), lambda: None, options())
    server.start()
    client = Client.of(server)
    assert client.ask("GET", "/health").json["status"] == "loading"
    assert client.ask("GET", "/v1/models").json["data"] == []
    answer = client.chat()
    assert (answer.status, answer.error["code"]) == (503, "model_loading")
    server.stop()
    server.start()
    assert Client.of(server).ask("GET", "/health").status == 503, "it starts again"
    server.stop()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head(9 << 20), b"413"),
        (head(10**30), b"4"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n", b"4"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA\x00: b\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: \xff\r\n\r\n", b"40"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", b"400"),
        (b"GET /health HTTP/1.0\r\n\r\n", b"403"),
        (UPGRADE, b"404"),
    ],
    ids=range(13),
)
def test_hostile_requests_get_an_answer_and_no_more(client: Client, data: bytes, status: bytes) -> None:
    received = client.raw(data)
    assert received.startswith(b"HTTP/1.1 " + status), received[:80]
    assert b'"error"' in received
    assert client.ask("GET", "/health").status == 200


def test_a_refusal_reaches_a_client_that_sends_a_long_request(start: Start) -> None:
    """All of it is sent before the answer is read, as clients do."""
    text = "x" * (12 << 20)
    client = Client.of(start(Scripted()))
    assert client.chat(text).error["code"] == "request_too_large"
    other_page = {"Origin": "http://evil.example"}
    assert client.ask("POST", CHAT, text.encode(), other_page).error["code"] == "forbidden"
    assert Client.of(start(Scripted(), token="s3cret")).chat(text).status == 401
    together = Client.of(start(Scripted(), limits=Limits(bodies_bytes=1 << 20)))
    assert together.chat(text[: 7 << 20]).error["code"] == "too_many_requests"


def test_slow_senders_are_cut_off(start: Start) -> None:
    client = Client.of(start(Scripted(), limits=Limits(header_s=0.2, body_s=0.2)))
    assert client.raw(b"") == client.raw(b"GET / HTTP/1.1\r\nHost: loc") == b""
    assert client.raw(head(100) + b"{").startswith(b"HTTP/1.1 408")
    with client.connect() as connection:
        connection.sendall(head(100, "Expect: 100-continue"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 100")


def test_bodies_have_a_limit_together(start: Start) -> None:
    asked = Scripted()
    client = Client.of(start(asked, limits=Limits(bodies_bytes=300)))
    with client.connect() as waiting:
        body = BODY.replace(b"Hello!", b"x" * 200)
        waiting.sendall(head(len(body)) + body)
        eventually(lambda: bool(asked.tickets))
        answer = client.chat("y" * 200)
        assert answer.status == 429 and answer.headers["retry-after"]
    eventually(asked.tickets[0].stopped.is_set)


def test_requests_that_wait_have_a_limit_and_vanish_with_their_clients(start: Start) -> None:
    asked = Scripted()
    server = start(asked, limits=Limits(requests=2))
    client = Client.of(server)
    waiting = [client.connect() for _ in range(2)]
    for connection in waiting:
        connection.sendall(head(len(BODY), "User-Agent: an\x1b agent/1") + BODY)
    eventually(lambda: len(server.who) == 2)
    assert {(one.path, one.agent, one.began) for one in server.who} == {(CHAT, "an\\x1b agent/1", False)}
    answer = client.chat()
    assert (answer.status, answer.error["code"]) == (429, "too_many_requests")
    assert int(answer.headers["retry-after"]) > 0
    for connection in waiting:
        connection.close()
    eventually(lambda: all(ticket.stopped.is_set() for ticket in asked.tickets) and server.who == ())


def test_connections_have_a_limit(start: Start) -> None:
    client = Client.of(start(Scripted(), limits=Limits(connections=3)))
    idle = [client.connect() for _ in range(8)]
    assert client.ask("GET", "/health").status == 200
    assert idle[0].recv(1) == b"", "the oldest was closed"
    for connection in idle:
        connection.close()


def test_a_client_that_vanishes_ends_its_reply(api: ApiServer, client: Client) -> None:
    with client.connect() as connection:
        body = BODY.replace(b"true}", b'true, "max_tokens": 400}')
        connection.sendall(head(len(body)) + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert len(api.who) == 1 and api.who[0].began
    eventually(lambda: api.who == ())
    assert client.chat().status == 200


def test_a_client_that_does_not_read_holds_up_nobody(start: Start) -> None:
    asked = Scripted()
    server = start(asked, limits=Limits(write_s=0.3))
    client = Client.of(server)
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.connect(("127.0.0.1", client.port))
    lazy.sendall(head(len(BODY)) + BODY)
    eventually(lambda: bool(asked.tickets))
    ticket = asked.tickets[0]
    while not ticket.stopped.is_set():
        ticket.receive(TextDelta(ticket.id, "x" * 100_000))
        assert client.ask("GET", "/health").status == 200
    eventually(lambda: server.who == ())
    lazy.close()


def test_text_that_turns_out_to_be_reasoning(start: Start) -> None:
    asked = Scripted()
    chunks = asked.ask(
        Client.of(start(asked)),
        text("so "),
        text("it is"),
        text(".", "reasoning", True),
        text("Yes."),
        done("Yes.", "so it is."),
    )
    taken = next(one for one in chunks if one.get("x_tqchat") == {"content_is_reasoning": True})
    assert taken["choices"][0]["delta"]["reasoning_content"] == "so it is."
    after = chunks[chunks.index(taken) + 1 :]
    assert [one["choices"][0]["delta"].get("content") for one in after] == ["Yes.", None]


def test_tool_calls_and_reasoning(start: Start) -> None:
    asked = Scripted()
    call = ToolCall("call_1", "look", '{"at": 1}')
    chunks = asked.ask(
        Client.of(start(asked)),
        text("hm", "reasoning"),
        lambda id: ToolCalled(id, call),
        lambda id: ToolCalled(id, call),
        done("", "hm"),
        tools=[{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
    )
    deltas = [one["choices"][0]["delta"] for one in chunks]
    assert deltas[0] == {"role": "assistant", "reasoning_content": "hm"}
    assert [one["tool_calls"][0]["index"] for one in deltas[1:3]] == [0, 1]
    assert deltas[1]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": 1}'}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert asked.tickets[0].request.tools[0]["function"]["name"] == "look"


def test_a_failure_in_a_stream_is_told_in_it(start: Start) -> None:
    asked = Scripted()
    chunks = asked.ask(Client.of(start(asked)), text("a"), lambda id: Failed(id, "It broke."))
    assert chunks[-1]["error"]["message"] == "It broke."


def test_stopping_ends_open_answers_with_a_sentence(start: Start) -> None:
    asked = Scripted()
    server = start(asked)
    client = Client.of(server)
    stopper = threading.Thread(target=lambda: (eventually(lambda: bool(asked.tickets)), server.stop()))
    stopper.start()
    answer = client.chat()
    assert (answer.status, answer.error["code"]) == (503, "stopping")
    stopper.join()
    with pytest.raises(ConnectionError):
        client.ask("GET", "/health")


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A request with some bytes changed, lost, doubled, or put elsewhere."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start, length = rng.randrange(len(changed) + 1), rng.randint(0, 8)
        piece = bytes(changed[start : start + length])
        match rng.randrange(5):
            case 0:
                changed[start : start + length] = rng.randbytes(length)
            case 1:
                del changed[start : start + length]
            case 2:
                changed[start:start] = piece * rng.randint(1, 40)
            case 3:
                place = rng.randrange(len(changed) + 1)
                changed[place:place] = piece
            case _:
                changed[start:start] = rng.choice(ODD)
    return bytes(changed)


def mistaken(rng: random.Random) -> bytes:
    """A body in which some values are of another kind, or missing."""
    value = json.loads(WHOLE)
    for _ in range(rng.randint(1, 2)):
        at: Any = value
        while True:
            key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.3:
                break
            at = at[key]
        if rng.random() < 0.2:
            del at[key]
        else:
            at[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return json.dumps(value).encode()


def mutations(client: Client, count: int, seed: int) -> dict[bytes, int]:
    """Send mutated requests; how many got which status. The server must answer after each hundred."""
    rng = random.Random(seed)
    seen: dict[bytes, int] = {}
    for number in range(count):
        if whole := rng.random() < 0.7:
            changed = mutated(rng, WHOLE) if rng.random() < 0.4 else mistaken(rng)
            data = head(len(changed), "Connection: close") + changed
        else:
            data = mutated(rng, head(len(WHOLE), "Connection: close") + WHOLE)
        with client.connect() as connection:
            received = b""
            try:
                connection.sendall(data)
                if not whole:  # the server may wait for more
                    connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65536):
                    received += piece
            except ConnectionError:
                pass
        status = received[9:12]
        assert status in STATUSES, (number, data, received)
        seen[status] = seen.get(status, 0) + 1
        if number % 100 == 99:
            assert client.ask("GET", "/health").status == 200
    return seen


def test_mutated_requests(api: ApiServer, client: Client) -> None:
    seen = mutations(client, 300, seed=1)
    assert seen[b"400"] > 20 and seen[b"200"] > 20
    eventually(lambda: api.who == ())
