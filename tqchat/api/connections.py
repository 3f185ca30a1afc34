"""Connections of clients: uvicorn's, with limits on time and number.

Imported only where uvicorn is installed.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from tqchat.api.errors import ApiError
from tqchat.api.options import Limits


def protocol(limits: Limits) -> type[H11Protocol]:
    """The protocol of connections with these limits."""

    class Connection(H11Protocol):
        def __init__(self, config: Config, server_state: Any, app_state: Any, _loop: Any = None) -> None:
            # Requests find their connection in their state.
            super().__init__(config, server_state, {**app_state, "abort": self._abort}, _loop)
            self._head_timer: asyncio.TimerHandle | None = None
            self._idle_since = self.loop.time()

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_head()
            if len(self.connections) > limits.connections:
                idle = [one for one in self.connections if isinstance(one, Connection) and one._is_idle()]
                min(idle, key=lambda one: one._idle_since, default=self)._abort()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self._is_idle():
                self._stop_timer()
            elif self._head_timer is None:
                self._expect_head()

        def on_response_complete(self) -> None:
            self._idle_since = self.loop.time()
            super().on_response_complete()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            # Closing waits for a client that does not read.
            self.loop.call_later(limits.write_s, self._abort)

        def send_400_response(self, msg: str) -> None:
            try:
                body = json.dumps(ApiError("The request is not valid HTTP.", code="invalid_http").to_json())
                headers = [("content-type", "application/json"), ("connection", "close")]
                for event in (
                    h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                    h11.Data(data=body.encode()),
                    h11.EndOfMessage(),
                ):
                    self.transport.write(self.conn.send(event) or b"")
            except h11.LocalProtocolError:
                pass  # an answer is under way: it ends here
            self.transport.close()

        def _is_idle(self) -> bool:
            """Whether no request is being read or answered, but for the head of one."""
            return self.cycle is None or (self.cycle.response_complete and self.conn.their_state is h11.IDLE)

        def _expect_head(self) -> None:
            self._head_timer = self.loop.call_later(limits.header_s, self._abort)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _abort(self) -> None:
            if self.transport is not None:
                self.transport.abort()

    return Connection
