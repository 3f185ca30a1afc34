"""Errors of the server: those that a client gets, and those of starting it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tqchat.errors import TqchatError


class ApiMissing(TqchatError):
    """The optional dependencies Starlette and uvicorn are not installed."""

    exit_code = 2

    def __init__(self) -> None:
        super().__init__(
            "`tqchat api` needs starlette and uvicorn; install them with `pip install 'tqchat[api]'`."
        )


@dataclass
class ApiError(Exception):
    """A request that is refused or fails, as OpenAI's clients expect it.

    Attributes:
        message: A sentence for the user of the client.
        status: HTTP status.
        kind: OpenAI's error type, e.g. ``invalid_request_error``.
        param: The field of the request that is wrong.
        code: OpenAI's error code, e.g. ``model_not_found``.
        headers: Further headers of the answer.
    """

    message: str
    status: int = 400
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(param: str, value: object, allowed: str) -> ApiError:
    """The error of a field that has a value it must not have."""
    return ApiError(f"{param} is {shown(value)}, but must be {allowed}.", param=param, code="invalid_value")


def unsupported(param: str, reason: str) -> ApiError:
    """The error of a field that asks for what this server does not do."""
    return ApiError(reason, param=param, code="unsupported_parameter")


MAX_SHOWN_CHARS = 60


def shown(value: object) -> str:
    """A value of a request in an error; long ones are shortened, and objects are named by their kind."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
