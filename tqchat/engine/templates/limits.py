"""Limits on what a chat template may compute: steps, time, sizes.

Python cannot interrupt a call in C, so every call is checked before it is made: none may build more than
``MAX_WEIGHT``, and what all of them build together is limited too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import Undefined

from tqchat.engine.templates.errors import TemplateError, TemplateLimit, TemplateStopped

RENDER_LIMIT_S = 5.0
MAX_STEPS = 5_000_000
MAX_WEIGHT = 16 << 20
"""Largest value: characters, and ``ITEM_WEIGHT`` for every item at any depth."""
ITEM_WEIGHT = 64
MAX_BUILT = 1 << 30
"""Total size of all values that one rendering builds."""
MAX_REPEAT = 1_000_000
"""Largest number that a template may pass to a function or a filter: ``'x'.ljust(n)`` builds n characters."""
MAX_ITEMS = 100_000
"""Most items, or characters of a text, that a filter may go through one by one."""
MAX_BITS = 4_096
_MAX_HASHED = 10_000
"""Most keys that are put into a table at once: keys can be chosen to collide."""
_MAX_INDENT = 64
_MAX_TEXT = {
    # Slower than linear.
    "urlize": 2_000,
    "striptags": 20_000,
    "wordwrap": 20_000,
    "int": 10_000,
    "float": 10_000,
    "fromjson": 1_000_000,
    "pprint": MAX_ITEMS,
    "strftime": 1_000,
}
_GO_THROUGH = (
    *("batch", "dictsort", "groupby", "items", "join", "list", "map", "max", "min", "random", "reject"),
    *("rejectattr", "select", "selectattr", "slice", "sort", "sum", "unique", "xmlattr"),
)
_REFUSED_METHODS = {"encode", "translate", "maketrans", "striptags", "unescape"}
"""Methods of texts that no chat template needs, and that are hard to bound."""
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


class Budget:
    """Steps, time and sizes left for one prompt."""

    def __init__(self) -> None:
        self._steps = MAX_STEPS
        self._built = 0
        self._seconds = RENDER_LIMIT_S
        self._deadline = float("inf")
        self._stopped = _stopped.get()
        self._weights: dict[int, tuple[Any, int]] = {}

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time spent inside counts, once."""
        if self._deadline < float("inf"):
            yield
            return
        self._deadline = time.monotonic() + self._seconds
        try:
            yield
        finally:
            self._seconds = self._deadline - time.monotonic()
            self._deadline = float("inf")

    def spend(self, steps: int = 1) -> None:
        """Count steps."""
        self._steps -= steps
        if self._stopped():
            raise TemplateStopped("it was stopped")
        if self._steps < 0 or time.monotonic() > self._deadline:
            raise TemplateLimit("it does not come to an end")

    def charge(self, size: int) -> None:
        """Count the size of something that is built."""
        self._built += size
        if self._built > MAX_BUILT:
            raise TemplateLimit("it builds too much")

    def weight(self, value: Any) -> int:
        """Size of a value with everything in it, however often it is in it. Containers never change."""
        if isinstance(value, str | bytes):
            return len(value)
        if isinstance(value, Undefined) or not isinstance(value, Mapping | list | tuple | set | frozenset):
            if isinstance(value, int) and value.bit_length() > MAX_BITS:
                raise TemplateLimit("it computes a number that is too large")
            return ITEM_WEIGHT
        known = self._weights.get(id(value))
        if known is not None:
            return known[1]
        total = ITEM_WEIGHT * (1 + len(value))
        children = (part for pair in value.items() for part in pair) if isinstance(value, Mapping) else value
        for child in children:
            total += self.weight(child)
            check_weight(total)
        self._weights[id(value)] = (value, total)
        return total


_stopped: ContextVar[Callable[[], bool]] = ContextVar("template_stopped", default=lambda: False)
_budget: ContextVar[Budget | None] = ContextVar("template_budget", default=None)


@contextmanager
def stopped_by(stopped: Callable[[], bool]) -> Iterator[None]:
    """Renderings inside end with ``TemplateStopped`` as soon as ``stopped`` returns true."""
    token = _stopped.set(stopped)
    try:
        yield
    finally:
        _stopped.reset(token)


@contextmanager
def one_budget() -> Iterator[Budget]:
    """One budget for all renderings inside. Inside another one, that one counts."""
    if (budget := _budget.get()) is not None:
        yield budget
        return
    budget = Budget()
    token = _budget.set(budget)
    try:
        yield budget
    finally:
        _budget.reset(token)


@contextmanager
def own_budget() -> Iterator[None]:
    """A new budget that no user stops, for results that are kept."""
    with stopped_by(lambda: False):
        budget = Budget()
    token = _budget.set(budget)
    try:
        with budget.timed():
            yield
    finally:
        _budget.reset(token)


def spend(steps: int = 1) -> None:
    """Count steps of the rendering under way."""
    if (budget := _budget.get()) is not None:
        budget.spend(steps)


def weight(value: Any) -> int:
    """See ``Budget.weight``."""
    return (_budget.get() or Budget()).weight(value)


def check_weight(size: int) -> None:
    """Refuse a value of this size."""
    if size > MAX_WEIGHT:
        raise TemplateLimit("it builds a text that is too long")


def built(value: Any) -> Any:
    """Count a value that was built. Of an iterator, the values are counted one by one."""
    budget = _budget.get()
    if budget is None:
        return value
    budget.spend()
    if isinstance(value, str | bytes):
        check_weight(len(value))
        budget.charge(sys.getsizeof(value))
    elif isinstance(value, Iterator) and not isinstance(value, Undefined) and not hasattr(value, "index0"):
        return counted(value)
    else:
        check_weight(budget.weight(value))
        if isinstance(value, Sized) and not isinstance(value, Undefined):
            budget.charge(ITEM_WEIGHT * len(value))
    return value


def written(value: Any) -> Any:
    """Count a value that is written: its text is at most about as long as its weight."""
    budget = _budget.get()
    if budget is not None:
        size = budget.weight(value)
        check_weight(size)
        budget.charge(size)
        budget.spend()
    return value


def counted(values: Iterable[Any], text: int = 0) -> Iterator[Any]:
    """Iterate, counting steps and the ``text`` that is written for each."""
    budget = _budget.get()
    for value in values:
        if budget is not None:
            budget.spend()
            budget.charge(text)
            check_weight(budget.weight(value))
        yield value


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Check an arithmetic operation before it is computed."""
    spend()
    containers = (str, list, tuple)
    if operator == "%" and isinstance(left, str):
        check_format(left, "%", (right,))
    elif isinstance(left, containers) or isinstance(right, containers):
        for value, count in ((left, right), (right, left)):
            if operator == "*" and isinstance(value, containers) and isinstance(count, int):
                check_weight(weight(value) * max(count, 0))
        if operator == "+":
            check_weight(weight(left) + weight(right))
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length()
        if operator == "**":
            bits = left.bit_length() * max(right, 1)
        if bits > MAX_BITS:
            raise TemplateLimit("it computes a number that is too large")


def check_arguments(arguments: Iterable[Any]) -> None:
    """Refuse numbers that a function might build a text of."""
    for value in arguments:
        if isinstance(value, int) and abs(value) > MAX_REPEAT:
            raise TemplateLimit("it passes a number that is too large")


def check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Check a method of a value before it is called."""
    everything = (*args, *kwargs.values())
    check_arguments(everything)
    if isinstance(owner, str):
        if name in _REFUSED_METHODS:
            raise TemplateError(f"it uses {name}, which is not allowed here")
        _check_text_method(owner, name, args, kwargs, everything)
    elif isinstance(owner, bytes | int | float) or name == "fromkeys":
        if name != "fromkeys" and not name.startswith("is"):
            raise TemplateError(f"it uses {name}, which is not allowed here")
        _check_hashed(everything)
    elif name == "strftime":
        _check_text(name, args[0] if args else "")


def _check_text_method(
    text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], everything: tuple[Any, ...]
) -> None:
    if name == "replace":
        check_replacement(text, *args[:2])
    elif name in ("split", "rsplit", "splitlines"):
        mark = kwargs.get("sep", args[0] if args and name != "splitlines" else None)
        if isinstance(mark, str) and mark:
            pieces = text.count(mark)
        elif name == "splitlines":
            pieces = sum(map(text.count, _LINE_ENDS))
        else:
            pieces = len(text) // 2
        check_weight(len(text) + ITEM_WEIGHT * pieces)
    elif name == "join":
        check_join(args[0] if args else (), text)
    elif name == "expandtabs":
        size = next((value for value in everything if isinstance(value, int)), 8)
        check_weight(len(text) + text.count("\t") * size)
    elif name in ("format", "format_map"):
        check_format(text, "{", everything)


def check_replacement(text: str, old: Any = None, new: Any = None) -> None:
    """Check the length of ``text.replace(old, new)``."""
    if isinstance(old, str) and isinstance(new, str):
        check_weight(len(text) + text.count(old) * len(new))


def check_join(values: Any, mark: str) -> None:
    """Check the length of ``mark.join(values)``."""
    if isinstance(values, Sized) and not isinstance(values, Undefined):
        check_weight((0 if isinstance(values, str) else weight(values)) + len(mark) * len(values))
    elif len(mark) > _MAX_INDENT:
        raise TemplateLimit("it builds a text that is too long")


def check_format(form: str, sign: str, arguments: Iterable[Any]) -> None:
    """Check the length of a formatted text: each field can be as wide as the largest number, and as long as
    all arguments."""
    fields = form.count(sign)
    if not fields:
        return
    largest = 0
    values = tuple(arguments)
    for text in (form, *(value for value in values if isinstance(value, str))) if sign == "{" else (form,):
        digits = "".join(char if char.isdigit() else " " for char in text[:MAX_ITEMS]).split()
        if any(len(number) > 6 for number in digits) or len(text) > MAX_ITEMS:
            raise TemplateLimit("it pads a text too far")
        largest = max([largest, *map(int, digits)])
    for value in values:
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, int):
                check_arguments((one,))
                largest = max(largest, abs(one)) if "*" in form or sign == "{" else largest
    check_weight(len(form) + fields * (largest + sum(map(weight, values))))


def check_filter(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Check a filter before it is called."""
    everything = (*args, *kwargs.values())
    spend()
    check_arguments(everything)
    if isinstance(value, Sized) and not isinstance(value, Undefined):
        check_weight(weight(value))
        if name in _GO_THROUGH and len(value) > MAX_ITEMS:
            raise TemplateLimit("it goes through too much")
    texts = [one for one in everything if isinstance(one, str)]
    longest = max(map(len, texts), default=0)
    _check_text(name, value)
    match name:
        case "replace":
            check_replacement(str(value), *map(str, everything[:2]))
        case "join":
            check_join(value, texts[0] if texts else "")
        case "indent":
            width = max([longest, *(one for one in everything if isinstance(one, int))], default=4)
            check_weight(len(str(value)) + (str(value).count("\n") + 1) * width)
        case "wordwrap":
            check_weight(len(str(value)) * (1 + longest))
        case "format":
            check_format(str(value), "%", everything)
        case "tojson":
            limits = [longest, *(one for one in everything if isinstance(one, int))]
            limits += [len(part) for one in everything if isinstance(one, tuple) for part in one]
            if max(limits) > _MAX_INDENT:
                raise TemplateLimit("it builds a text that is too long")
        case "sum":
            if any(isinstance(one, list | tuple) for one in everything):
                raise TemplateLimit("it goes through too much")
        case "unique":
            _check_hashed((value,))
        case _:
            pass


def _check_text(name: str, value: Any) -> None:
    if name in _MAX_TEXT and weight(value) > _MAX_TEXT[name]:
        raise TemplateLimit(f"it uses {name} on a text that is too long")


def _check_hashed(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, Sized) and not isinstance(value, Undefined) and len(value) > _MAX_HASHED:
            raise TemplateLimit("it goes through too much")


def check_table(args: tuple[Any, ...]) -> None:
    """Check the arguments of ``dict``."""
    _check_hashed(args)
