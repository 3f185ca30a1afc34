"""The server's paths: OpenAI's for chats, completions and models.

Imported only where Starlette is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tqchat.api import asked
from tqchat.api.asked import Asked, Defaults
from tqchat.api.desk import Answer, Desk, Visitor, checked
from tqchat.api.errors import ApiError
from tqchat.api.fields import parse
from tqchat.api.guard import Guard
from tqchat.api.options import Limits, Options
from tqchat.api.replies import Reply
from tqchat.engine.events import Done, Failed, ModelInfo, Notice, PrefillProgress, TextDelta

_log = logging.getLogger(__name__)

KEEP_ALIVE_S = 10.0
"""After this time without text a stream gets a comment: neither side takes the connection for dead."""
LARGE_BODY_BYTES = 64 << 10
"""From this size on a body is parsed on a thread, so that others are answered meanwhile."""
LINGER_S, LINGER_PAUSE_S = 30.0, 1.0
"""A refused request is read on for so long at most, and until nothing has come for the second time."""
MAX_AGENT_CHARS = 60
NOT_SERVED = (
    "/v1/embeddings",
    "/v1/images/{rest:path}",
    "/v1/audio/{rest:path}",
    "/v1/moderations",
    "/v1/responses",
    "/v1/messages",
)

Read = Callable[[Mapping[str, Any], Defaults], Asked]


def make(desk: Desk, model: Callable[[], ModelInfo | None], guard: Guard, options: Options) -> ASGIApp:
    """The ASGI application.

    Args:
        model: The model that answers; ``None`` while none is loaded.
    """
    handlers = _Handlers(desk, model, options)
    app = Starlette(
        routes=[
            Route("/health", handlers.health),
            Route("/v1/models", handlers.models),
            Route("/v1/models/{name:path}", handlers.one_model),
            Route("/v1/chat/completions", handlers.chat, methods=["POST"]),
            Route("/v1/completions", handlers.completion, methods=["POST"]),
            *(Route(path, _not_served, methods=["GET", "POST"]) for path in NOT_SERVED),
        ],
        exception_handlers={ApiError: _refused, HTTPException: _no_such_path, Exception: _failed},
    )
    app.router.redirect_slashes = False

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            try:
                _check_head(scope, options.limits.header_bytes)
                guard.check(headers)
            except ApiError as error:
                await _response(error)(scope, receive, send)
                return
        await app(scope, receive, send)

    return guarded


def _check_head(scope: Scope, most: int) -> None:
    """
    Raises:
        ApiError: if a request's head is too long. h11 has a limit only for one that does not come at once.
    """
    lines = sum(len(name) + len(value) for name, value in scope["headers"])
    if len(scope["raw_path"]) + len(scope["query_string"]) + lines > most:
        raise ApiError(
            "The head of the request is too long.",
            status=431,
            code="headers_too_large",
            headers={"Connection": "close"},
        )


class _Handlers:
    def __init__(self, desk: Desk, model: Callable[[], ModelInfo | None], options: Options) -> None:
        self._desk, self._model, self._options = desk, model, options
        self._bodies = _Bodies(options.limits)

    async def health(self, request: HttpRequest) -> Response:
        model = self._model()
        return JSONResponse(
            {
                "status": "ok" if model is not None else "loading",
                "model": None if model is None else model.name,
                "requests": len(self._desk.visitors),
            },
            status_code=200 if model is not None else 503,
        )

    async def models(self, request: HttpRequest) -> Response:
        model = self._model()
        return JSONResponse({"object": "list", "data": [] if model is None else [_listed(model)]})

    async def one_model(self, request: HttpRequest) -> Response:
        return JSONResponse(_listed(self._served(request.path_params["name"])))

    async def chat(self, request: HttpRequest) -> Response:
        return _Answering(lambda send: self._answer(request, send, asked.chat, is_chat=True))

    async def completion(self, request: HttpRequest) -> Response:
        return _Answering(lambda send: self._answer(request, send, asked.completion, is_chat=False))

    def _served(self, name: str | None) -> ModelInfo:
        """The model of this name.

        Raises:
            ApiError: if it is not the one that is loaded.
        """
        model = self._model()
        if model is None:
            raise ApiError(
                "The model is still being loaded; try again later.",
                status=503,
                kind="server_error",
                code="model_loading",
                headers={"Retry-After": "5"},
            )
        names = {model.name, model.ref, model.label}
        known = {one.lower() for one in (*names, *(name.rstrip("/").rsplit("/", 1)[-1] for name in names))}
        if name and name.lower() not in known:
            raise ApiError(
                f"The model {name[:100]!a} is not served here; this server has {model.name}.",
                status=404,
                param="model",
                code="model_not_found",
            )
        return model

    async def _answer(self, request: HttpRequest, send: Send, read: Read, *, is_chat: bool) -> None:
        writer = _Writer(request, send, self._options.limits.write_s)
        async with self._bodies.body(request) as body:
            wanted = await self._read(body, read)
            model = self._served(wanted.model)
            with self._desk.request(wanted.request, _visitor(request)) as (number, answer):
                with_logprobs = wanted.request.logprobs is not None
                named = bool(wanted.request.tool_choice.name)
                reply = Reply(number, model, is_chat, wanted.with_usage, with_logprobs, named)
                if wanted.stream:
                    await _while_connected(request, _stream(reply, answer, writer))
                else:
                    await _while_connected(request, _whole(reply, answer, writer))

    async def _read(self, body: bytes, read: Read) -> Asked:
        def parsed() -> Asked:
            return read(parse(body), self._options.defaults())

        return parsed() if len(body) < LARGE_BODY_BYTES else await asyncio.to_thread(parsed)


def _visitor(request: HttpRequest) -> Visitor:
    client = request.client
    return Visitor(
        f"{client.host}:{client.port}" if client is not None else "unknown",
        ascii(request.headers.get("user-agent", ""))[1:-1][:MAX_AGENT_CHARS],
        request.url.path,
    )


class _Bodies:
    """Reads requests' bodies, each and all together up to a limit."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    @contextlib.asynccontextmanager
    async def body(self, request: HttpRequest) -> AsyncIterator[bytes]:
        """A request's body. It counts as held until the end.

        Raises:
            ApiError: if it is too long or comes too slowly.
        """
        taken = bytearray()
        counted = 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                if (announced := request.headers.get("content-length", "")).isdigit():
                    self._check(int(announced[:20]), 0)
                async for piece in request.stream():
                    self._check(len(taken) + len(piece), counted)
                    taken += piece
                    self._held += len(piece)
                    counted += len(piece)
            yield bytes(taken)
        except TimeoutError:
            raise ApiError(
                "The request did not arrive in time.",
                status=408,
                code="timeout",
                headers={"Connection": "close"},
            ) from None
        finally:
            self._held -= counted

    def _check(self, size: int, counted: int) -> None:
        """Check the size of a body, of which a part is counted already."""
        if size > self._limits.body_bytes:
            raise ApiError(
                f"The request is longer than {self._limits.body_bytes >> 20} MiB.",
                status=413,
                code="request_too_large",
                headers={"Connection": "close"},
            )
        if self._held - counted + size > self._limits.bodies_bytes:
            raise ApiError(
                "The requests that are being answered are too long together; try again later.",
                status=429,
                kind="rate_limit_error",
                code="too_many_requests",
                headers={"Retry-After": "5", "Connection": "close"},
            )


class _Writer:
    """Sends an answer; gives the client up that does not read it."""

    def __init__(self, request: HttpRequest, send: Send, timeout_s: float) -> None:
        self._request, self._send, self._timeout_s = request, send, timeout_s

    async def send(self, message: Message) -> None:
        """Send a message of ASGI.

        Raises:
            ClientDisconnect: if the client takes nothing for too long.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError:
            self._request.state.abort()
            raise ClientDisconnect from None

    async def whole(self, response: Response) -> None:
        """Send a whole answer."""
        await response(self._request.scope, self._request.receive, self.send)

    async def begin(self) -> None:
        """Begin a stream of server-sent events."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def line(self, text: str) -> None:
        """Send one line of a stream."""
        body = f"{text}\n\n".encode()
        await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """End a stream."""
        await self.line("data: [DONE]")
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})


async def _whole(reply: Reply, answer: Answer, writer: _Writer) -> None:
    """Send an answer when it is complete."""
    events = []
    async for event in answer.events():
        is_text = isinstance(event, TextDelta)
        if reply.with_logprobs if is_text else not isinstance(event, PrefillProgress):
            events.append(checked(event))
    await writer.whole(JSONResponse(reply.whole(events)))


async def _stream(reply: Reply, answer: Answer, writer: _Writer) -> None:
    """Send an answer as server-sent events, as it comes.

    A failure before the first text has a status of its own; a later one is an event with an error.
    """
    begun = False
    progress = "waiting"
    async for event in answer.events(KEEP_ALIVE_S):
        if isinstance(event, Failed | Done) and begun:
            try:
                checked(event)
            except ApiError as error:
                await writer.line(f"data: {json.dumps(error.to_json())}")
                break
        if isinstance(event, PrefillProgress):
            progress = f"{event.done} of {event.total} tokens are read"
            continue
        if not begun and not isinstance(event, Notice):
            if event is not None:
                checked(event)
            await writer.begin()
            begun = True
        if event is None:
            await writer.line(f": {progress}")
            continue
        for chunk in reply.chunks(event):
            await writer.line(f"data: {json.dumps(chunk)}")
    await writer.end()


async def _while_connected(request: HttpRequest, work: Coroutine[Any, Any, None]) -> None:
    """Do this until the client is gone.

    Raises:
        ClientDisconnect: if it is gone before the end.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


class _Answering(Response):
    """An answer that is sent by what makes it."""

    def __init__(self, answer: Callable[[Send], Awaitable[None]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client leaves."""
        with contextlib.suppress(ClientDisconnect):
            await self._answer(send)


async def _not_served(request: HttpRequest) -> Response:
    raise ApiError(
        f"{request.url.path} is not served: this server has chats and completions of text only.",
        status=404,
        code="not_supported",
    )


async def _refused(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _response(error)


def _response(error: ApiError) -> Response:
    return _Refusal(error.to_json(), error.status, dict(error.headers))


class _Refusal(JSONResponse):
    """An error. If it closes the connection, the rest of the request is read first, and not kept.

    A connection that is closed while its client still sends is reset, and the answer is lost on its way.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        if self.headers.get("connection") == "close":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while (await asyncio.wait_for(receive(), LINGER_PAUSE_S)).get("more_body"):
                        pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _no_such_path(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        sentence, code = f"{request.method} is not possible for this path.", "method_not_allowed"
    else:
        sentence, code = "There is no such path; chats are asked at /v1/chat/completions.", "not_found"
    return _response(ApiError(sentence, error.status_code, code=code, headers=error.headers or {}))


async def _failed(request: HttpRequest, error: Exception) -> Response:
    # Without its message, which may hold text of the request.
    _log.error("%s in a request: %s", type(error).__name__, traceback.format_tb(error.__traceback__))
    return _response(
        ApiError("The server has failed; its log says where.", 500, "server_error", code="internal_error")
    )


def _listed(model: ModelInfo) -> dict[str, Any]:
    """A model in the list of models."""
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "tqchat",
        "max_model_len": model.context_limit,
    }
