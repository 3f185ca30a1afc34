"""Reading untrusted JSON: fields of a known type, and errors that name the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tqchat import settings
from tqchat.api.errors import ApiError, invalid

MAX_DIGITS = 20
"""Longest whole number that is read; no field takes a larger one."""
MAX_EXACT_FLOAT = 2**53
MAX_DEPTH = 100
"""Most levels of lists and objects in what is handed on, such as the schema of a tool."""


@dataclass(frozen=True)
class Unusable:
    """A number that JSON can write and no field takes: 1e400, NaN, one of 5,000 digits."""

    text: str

    def __repr__(self) -> str:
        return self.text


def parse(body: bytes) -> dict[str, Any]:
    """Parse a request's body.

    Raises:
        ApiError: if it is not a JSON object.
    """
    try:
        value = json.loads(
            body.decode("utf-8-sig"), parse_int=_integer, parse_float=_number, parse_constant=Unusable
        )
    except UnicodeDecodeError:
        raise ApiError("The body is not text in UTF-8.", code="invalid_json") from None
    except RecursionError:
        raise ApiError("The body has too many levels of lists and objects.", code="invalid_json") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ApiError(f"The body is not JSON: {error.msg}, {place}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError("The body must be a JSON object.", code="invalid_json")
    return value


def _integer(text: str) -> int | Unusable:
    return int(text) if len(text) <= MAX_DIGITS else Unusable(text)


def _number(text: str) -> float | Unusable:
    number = float(text)
    return number if math.isfinite(number) else Unusable(text)


def clean(text: str) -> str:
    """A string without lone surrogates, which JSON can write but UTF-8 cannot."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Fields:
    """The fields of one object of a request. ``null`` counts as missing.

    Attributes:
        place: Where the object is, e.g. ``messages[2]``; empty for the request itself.
    """

    def __init__(self, value: Mapping[str, Any], place: str = "") -> None:
        self._value, self.place = value, place

    def named(self, name: str) -> str:
        """A field's full name, for errors."""
        return f"{self.place}.{name}" if self.place else name

    def get(self, name: str) -> Any:
        """A field, or ``None``.

        Some clients write a whole number as ``3.0``, which in JSON is the same number.
        """
        value = self._value.get(name)
        if isinstance(value, float) and value.is_integer() and abs(value) < MAX_EXACT_FLOAT:
            return int(value)
        return value

    def has(self, name: str) -> bool:
        """Whether a field is there and says something: not null, false, 0, or empty."""
        value = self._value.get(name)
        return isinstance(value, Unusable) or bool(value)

    def text(self, name: str) -> str | None:
        """A string."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise invalid(self.named(name), value, "a string")
        return clean(value)

    def flag(self, name: str) -> bool:
        """A boolean; false if it is missing."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise invalid(self.named(name), value, "true or false")
        return bool(value)

    def count(self, name: str, most: int) -> int | None:
        """A whole number from 0."""
        value = self.get(name)
        if value is not None and (type(value) is not int or not 0 <= value <= most):
            raise invalid(self.named(name), value, f"a whole number from 0 to {most}")
        return value

    def objects(self, name: str) -> list[Fields]:
        """A list of objects; empty if it is missing."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise invalid(self.named(name), value, "a list of objects")
        return [_fields(one, f"{self.named(name)}[{index}]") for index, one in enumerate(value)]

    def object(self, name: str) -> Fields | None:
        """An object."""
        value = self.get(name)
        return None if value is None else _fields(value, self.named(name))

    def setting(self, name: str, setting: str) -> Any:
        """A value that the setting of this name takes, too."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, Unusable) or (allowed := settings.violation(setting, value)) is not None:
            allowed = settings.SETTINGS_BY_NAME[setting].allowed
            raise invalid(self.named(name), value, allowed)
        return value

    def plain(self, name: str) -> Any:
        """A JSON value that is handed on as it is.

        Raises:
            ApiError: if it is too deep or holds a number that nothing can use.
        """
        return _plain(self._value.get(name), self.named(name), MAX_DEPTH)


def _fields(value: object, place: str) -> Fields:
    if not isinstance(value, dict):
        raise invalid(place, value, "an object")
    return Fields(value, place)


def _plain(value: Any, place: str, levels: int) -> Any:
    if not levels:
        raise ApiError(f"{place} has more than {MAX_DEPTH} levels.", param=place, code="invalid_value")
    match value:
        case dict():
            return {clean(key): _plain(one, place, levels - 1) for key, one in value.items()}
        case list():
            return [_plain(one, place, levels - 1) for one in value]
        case str():
            return clean(value)
        case Unusable():
            raise invalid(place, value, "free of such numbers")
    return value
