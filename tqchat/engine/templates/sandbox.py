"""A Jinja sandbox for chat templates, which are as untrusted as the model they come with.

The environment offers what transformers' does (``raise_exception``, ``strftime_now``, ``tojson``, loop
controls, ``{% generation %}``), but with a fixed clock and with limits on time and size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache, wraps
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, loopcontrols
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, _PassArg

from tqchat.engine.templates import limits
from tqchat.engine.templates.errors import TemplateError, TemplateLimit, TemplateStopped

MAX_TEMPLATE_LENGTH = 1 << 18
"""Compiling takes time in proportion, and cannot be interrupted."""
MAX_MESSAGE_LENGTH = 500
MAX_LITERAL_ITEMS = 10_000
"""Most items of one table, list or tuple that is written out."""

_ESCAPED = re.compile("[^\\x00-\\x7f\\U000f0000-\\U000fffff]")
"""Characters that ``tojson(ensure_ascii=True)`` escapes; private ones stand for control tokens."""
_LOOP_FILTER = "_tqchat_loop"
_JOIN_FILTER = "_tqchat_join"
_BUILT_FILTER = "_tqchat_built"


class _Generator(CodeGenerator):
    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        limits.spend()
        return super().visit(node, *args, **kwargs)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])
    code_generator_class = _Generator

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        limits.check_operation(operator, left, right)
        return limits.built(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(__obj, LoopContext):
            args = (_bounded(args[0]), *args[1:]) if args else args
        elif isinstance(__obj, _Dict):
            limits.check_table(args)
        else:
            owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
            limits.check_method(owner, name, args, kwargs)
        return limits.built(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        safe = super().wrap_str_format(value)
        if safe is None:
            return None

        def limited(*args: Any, **kwargs: Any) -> str:
            limits.check_method(value.__self__, value.__name__, args, kwargs)
            return safe(*args, **kwargs)

        return limited

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            text = sum(len(data.data) for data in loop.find_all(nodes.TemplateData))
            loop.iter = _filtered(_LOOP_FILTER, loop.iter, nodes.Const(text, lineno=loop.lineno))
        _limit_expressions(tree)
        return tree


def _filtered(name: str, node: Any, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _limit_expressions(tree: nodes.Node) -> None:
    """Put filters that count and check around what is computed without a call."""
    for field, value in tree.iter_fields():
        if isinstance(value, list):
            setattr(tree, field, [_limited_expression(item) for item in value])
        elif isinstance(value, nodes.Node):
            setattr(tree, field, _limited_expression(value))


def _limited_expression(node: Any) -> Any:
    if not isinstance(node, nodes.Node):
        return node
    _limit_expressions(node)
    match node:
        case nodes.Concat():
            return _filtered(_JOIN_FILTER, nodes.List(node.nodes, lineno=node.lineno))
        case nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load"):
            if len(node.items) > MAX_LITERAL_ITEMS:
                raise jinja2.TemplateSyntaxError("a list is too long", node.lineno)
            return _filtered(_BUILT_FILTER, node)
        case nodes.Compare() | nodes.Getitem(arg=nodes.Slice()):
            return _filtered(_BUILT_FILTER, node)
    return node


def _joined(values: list[Any]) -> str:
    limits.check_weight(sum(map(limits.weight, values)))
    return str(limits.built("".join(map(str, values))))


def _bounded(values: Any, text: int = 0) -> Any:
    """The values of a loop, counted against the limits; ``text`` is what its body writes each time."""
    if isinstance(values, jinja2.Undefined) or not isinstance(values, Iterable):
        return values
    limits.spend()
    return limits.counted(values, text)


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is checked before, and whose result is counted."""
    first = 0 if _PassArg.from_obj(function) is None else 1

    @wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        limits.check_filter(name, args[first] if len(args) > first else None, args[first + 1 :], kwargs)
        return limits.built(function(*args, **kwargs))

    return limited


def _limited_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        limits.spend()
        return function(*args, **kwargs)

    return limited


class _Generation(Extension):
    """``{% generation %}`` marks what training counts as the reply; its content is written as it is."""

    tags = {"generation"}

    def filter_stream(self, stream: TokenStream) -> Iterable[Token]:
        """Count the tokens: a long template takes long to compile."""
        for token in stream:
            limits.spend()
            yield token

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

    def __repr__(self) -> str:
        return "<Namespace>"  # its values can contain each other many times


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
    raise TemplateError(str(message)[:MAX_MESSAGE_LENGTH])


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=limits.written
    )
    environment.globals.update(
        raise_exception=_raise_exception, dict=_Dict(), namespace=_Namespace, strftime_now=clock(None)
    )
    environment.globals.pop("lipsum", None)
    filters: dict[str, Callable[..., Any]] = environment.filters | {"tojson": _tojson, "fromjson": json.loads}
    environment.filters |= {name: _limited_filter(name, function) for name, function in filters.items()}
    environment.filters |= {_LOOP_FILTER: _bounded, _JOIN_FILTER: _joined, _BUILT_FILTER: limits.built}
    for name, test in environment.tests.items():
        environment.tests[name] = _limited_test(test)  # type: ignore[arg-type]
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


def _parsed(source: str) -> nodes.Template:
    with limits.own_budget():
        return _environment().parse(source)


@lru_cache(maxsize=16)
def undeclared_variables(source: str) -> frozenset[str]:
    """Names that a template takes from outside; none if it does not compile."""
    try:
        return frozenset(meta.find_undeclared_variables(_parsed(source)))
    except (jinja2.TemplateError, RecursionError, TemplateLimit):
        return frozenset()


@lru_cache(maxsize=16)
def syntax_tree(source: str) -> nodes.Template:
    """A template's syntax tree; an empty one if it does not compile."""
    try:
        return _parsed(source)
    except (jinja2.TemplateError, RecursionError, TemplateLimit):
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
    try:
        with limits.one_budget() as budget, budget.timed():
            pieces = []
            length = 0
            for piece in _compiled(source).generate(**context):
                limits.spend()
                length += len(piece)
                limits.check_weight(length)
                pieces.append(piece)
            return "".join(pieces)
    except (TemplateError, TemplateStopped):
        raise
    except RecursionError as error:
        raise TemplateLimit("it does not come to an end") from error
    except Exception as error:  # a template can make Python raise whatever it likes
        raise TemplateError((str(error) or type(error).__name__)[:MAX_MESSAGE_LENGTH]) from error
