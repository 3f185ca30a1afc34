"""A client of the server, down to its bytes."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tqchat.api.server import ApiServer

TIMEOUT_S = 120.0
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"].endswith(".")
        return dict(error)

    @property
    def chunks(self) -> list[Any]:
        """The objects of a stream, which must have ended properly."""
        lines = [line for line in self.body.decode().split("\n\n") if line and not line.startswith(":")]
        assert lines[-1] == "data: [DONE]", lines[-1:]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class Client:
    def __init__(self, port: int, headers: Mapping[str, str] | None = None) -> None:
        self.port, self._headers = port, dict(headers or {})

    @classmethod
    def of(cls, server: ApiServer) -> Client:
        assert server.address is not None
        return cls(int(server.address.rsplit(":", 1)[1].split("/")[0]))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)

    def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, sent, self._headers | dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def chat(self, content: object = "Hello!", **fields: object) -> Answer:
        messages = [{"role": "user", "content": content}]
        return self.ask("POST", CHAT, {"messages": messages, "max_tokens": 4, "temperature": 0} | fields)

    def raw(self, data: bytes) -> bytes:
        """Send bytes; everything that comes until the server closes the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            received = b""
            while piece := connection.recv(65536):
                received += piece
        return received
