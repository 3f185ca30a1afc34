"""A Jinja sandbox for chat templates, which are as untrusted as the model they come with.

The environment offers what transformers' does (``raise_exception``, ``strftime_now``, ``tojson``, loop
controls, ``{% generation %}``), but with a fixed clock and with limits on time and size.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_replace
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from tqchat.engine.templates.errors import TemplateError, TemplateLimit

RENDER_LIMIT_S = 5.0
MAX_LOOP_STEPS = 5_000_000
MAX_VALUE_LENGTH = 64 << 20
"""Longest string or list that a template may build."""
MAX_TEMPLATE_LENGTH = 1 << 20
MAX_REPEAT = 1_000_000
"""Largest number that a template may pass to a function or a filter: ``'x'.ljust(n)`` builds n characters."""

_ESCAPED = re.compile("[^\\x00-\\x7f\\U000f0000-\\U000fffff]")
"""What ``tojson(ensure_ascii=True)`` escapes; the private characters stand for control tokens in contents."""
_LOOP_FILTER = "_tqchat_loop"
_JOIN_FILTER = "_tqchat_join"


class _Budget:
    """Steps and time left for one rendering."""

    def __init__(self) -> None:
        self._steps = MAX_LOOP_STEPS
        self._deadline = time.monotonic() + RENDER_LIMIT_S

    def spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0 or time.monotonic() > self._deadline:
            raise TemplateLimit("it does not come to an end")


_budget: ContextVar[_Budget | None] = ContextVar("template_budget", default=None)


def _spend(steps: int) -> None:
    budget = _budget.get()
    if budget is not None:
        budget.spend(steps)


def _check_length(length: int) -> None:
    if length > MAX_VALUE_LENGTH:
        raise TemplateLimit("it builds a text that is too long")


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _spend(1)
        if operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            _check_length(len(left) + len(right))
        elif operator == "*":
            for value, count in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(count, int):
                    _check_length(len(value) * count)
        elif operator == "**" and isinstance(right, (int, float)) and abs(right) > 64:
            raise TemplateLimit("it computes a number that is too large")
        elif operator == "%" and isinstance(left, str):
            _check_widths(left)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _spend(1)
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > MAX_REPEAT:
                raise TemplateLimit("it passes a number that is too large")
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str) and getattr(__obj, "__name__", "") == "replace":
            _check_replacement(text, *args[:2])
        return super().call(__context, __obj, *args, **kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(_LOOP_FILTER, loop.iter)
        _limit_concatenation(tree)
        return tree


def _filtered(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _limit_concatenation(tree: nodes.Node) -> None:
    """Replace ``a ~ b`` by a filter that checks the length of the result."""
    for field, value in tree.iter_fields():
        if isinstance(value, list):
            items = [_without_concat(item) for item in value]
            setattr(tree, field, items)
        elif isinstance(value, nodes.Node):
            setattr(tree, field, _without_concat(value))


def _without_concat(node: Any) -> Any:
    if not isinstance(node, nodes.Node):
        return node
    _limit_concatenation(node)
    if isinstance(node, nodes.Concat):
        return _filtered(_JOIN_FILTER, nodes.List(node.nodes, lineno=node.lineno))
    return node


def _joined(values: list[Any]) -> str:
    texts = [str(value) for value in values]
    _spend(1)
    _check_length(sum(map(len, texts)))
    return "".join(texts)


def _bounded(values: Any) -> Any:
    """The values of a loop, counted against the limit on rendering."""
    if isinstance(values, jinja2.Undefined) or not isinstance(values, Iterable):
        return values
    if isinstance(values, Sized):
        _spend(1 + len(values))
        return values
    return _counted(values)


def _counted(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        _spend(1)
        yield value


def _check_replacement(text: object, old: object = None, new: object = None) -> None:
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        _check_length(len(text) + text.count(old) * len(new))


def _check_widths(form: str) -> None:
    digits = "".join(c if c.isdigit() else " " for c in form).split()
    if any(len(number) > 6 for number in digits) and "%" in form:
        raise TemplateLimit("it pads a text too far")


class _Generation(Extension):
    """``{% generation %}`` marks what training counts as the reply; its content is written as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class _Dict:
    """``dict`` for templates, without the type's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """``namespace`` for templates, without underscored names: those reach into CPython."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the name {name!r} is unsafe")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML.
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return _ESCAPED.sub(lambda match: json.dumps(match[0])[1:-1], text) if ensure_ascii else text


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """A padding filter that refuses absurd widths."""

    def limited(value: Any, *args: Any, **kwargs: Any) -> Any:
        for number in (*args, *kwargs.values()):
            if isinstance(number, int) and number > MAX_REPEAT:
                raise TemplateLimit("it pads a text too far")
        return function(value, *args, **kwargs)

    return limited


@jinja2.pass_eval_context
def _replace(context: Any, text: Any, old: Any, new: Any, count: int | None = None) -> str:
    _check_replacement(str(text), str(old), str(new))
    return str(do_replace(context, text, old, new, count))


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.globals.update(
        raise_exception=_raise_exception, dict=_Dict(), namespace=_Namespace, strftime_now=clock(None)
    )
    environment.globals.pop("lipsum", None)
    filters = environment.filters
    filters["replace"] = _replace
    filters["tojson"], filters["fromjson"] = _tojson, json.loads
    for name in ("center", "indent"):
        filters[name] = _limited(filters[name])
    filters[_LOOP_FILTER], filters[_JOIN_FILTER] = _bounded, _joined
    return environment


def wall_clock() -> float:
    """Local time in seconds since 1970-01-01 00:00 local time, so that no time zone is needed to show it."""
    return datetime.now().replace(tzinfo=UTC).timestamp()


def clock(began: float | None) -> Callable[[str], str]:
    """``strftime_now`` for templates, fixed at the time a conversation began.

    Args:
        began: From ``wall_clock``; ``None`` is now. Independent of the machine's time zone, since a change of
            it must not change the prompt of a cached conversation.
    """
    moment = datetime.fromtimestamp(wall_clock() if began is None else began, UTC).replace(tzinfo=None)
    return moment.strftime


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@lru_cache(maxsize=16)
def undeclared_variables(source: str) -> frozenset[str]:
    """Names that a template takes from outside; none if it does not compile."""
    try:
        return frozenset(meta.find_undeclared_variables(_environment().parse(source)))
    except jinja2.TemplateError:
        return frozenset()


@lru_cache(maxsize=16)
def syntax_tree(source: str) -> nodes.Template:
    """A template's syntax tree; an empty one if it does not compile."""
    try:
        return _environment().parse(source)
    except jinja2.TemplateError:
        return nodes.Template([], lineno=1)


@lru_cache(maxsize=16)
def literal_text(source: str) -> str:
    """A template's plain text and string constants, NUL between them."""
    tree = syntax_tree(source)
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return "\0".join(texts)


def render_template(source: str, context: Mapping[str, Any]) -> str:
    """Run a template.

    Raises:
        TemplateError: if it does not compile or raises.
        TemplateLimit: if it exceeds the limits on time and size.
    """
    token = _budget.set(_Budget())
    try:
        pieces = []
        length = 0
        for piece in _compiled(source).generate(**context):
            _spend(1)
            length += len(piece)
            _check_length(length)
            pieces.append(piece)
        return "".join(pieces)
    except TemplateError:
        raise
    except RecursionError as error:
        raise TemplateLimit("it does not come to an end") from error
    except Exception as error:  # a template can make Python raise whatever it likes
        raise TemplateError(str(error) or type(error).__name__) from error
    finally:
        _budget.reset(token)
