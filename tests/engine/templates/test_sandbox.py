"""Templates are untrusted: no way out of the sandbox, no endless rendering, no endless text."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tqchat.engine.templates.errors import TemplateError
from tqchat.engine.templates.sandbox import clock, literal_text, render_template, undeclared_variables


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in text %}{% for b in text %}{% for c in text %}{% endfor %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(90) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(90) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}",
        "{% set x = 'a' * 100000 %}{{ x | replace('a', x) }}",
        "{{ 10 ** 10000000 }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ 'a' | center(10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_would_not_end_is_stopped(source: str) -> None:
    began = time.monotonic()
    with pytest.raises(TemplateError):
        render_template(source, {"text": "abc" * 10_000})
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__class__ }}",
        "{{ strftime_now.__self__ }}",
        "{{ namespace(__class__='x') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% set _ = messages.append(1) %}",
    ],
)
def test_there_is_no_way_out(source: str) -> None:
    try:
        written = render_template(source, {"messages": [], "strftime_now": clock(0.0)})
    except TemplateError as error:
        assert "safe" in str(error)
    else:
        assert written == "", "Jinja writes nothing for a name that is not to be had"


@pytest.mark.parametrize(
    ("source", "context", "written"),
    [
        (
            "{% for m in ms %}{{ m.a ~ loop.index }}{% if loop.last %}!{% endif %}{% endfor %}",
            {"ms": [{"a": 1}, {"a": 2}]},
            "1122!",
        ),
        ("{{ t.replace('a', 'b') }}{{ t | replace('a', 'c', 1) }}", {"t": "aa"}, "bbca"),
        (
            "{% for m in ms | selectattr('a') %}{{ m.a }}{% break %}{% endfor %}",
            {"ms": [{"a": 1}, {"a": 2}]},
            "1",
        ),
        ("{% for x in nothing %}a{% else %}b{% endfor %}", {}, "b"),
        ("{% generation %}a{% endgeneration %}b", {}, "ab"),
        ("{{ {'a': '<é>'} | tojson }}", {}, '{"a": "<é>"}'),
        ("{{ ('[1]' | fromjson)[0] + 1 }}", {}, "2"),
        ("{{ dict(a=1).a }}{{ namespace(a=2).a }}", {}, "12"),
        ("{% set x %}{% for a in [1, 2] %}{{ a }},{% endfor %}{% endset %}{{ x | trim(',') }}", {}, "1,2"),
        ("{% for k, v in d.items() recursive %}{{ k }}{{ loop.length }}{% endfor %}", {"d": {"b": 1}}, "b1"),
        ("{{ '%s and %d' % ('a', 2) }}", {}, "a and 2"),
        (
            "{{ strftime_now('%d %b %Y %H:%M:%S') }}",
            {"strftime_now": clock(86_400.0)},
            "02 Jan 1970 00:00:00",
        ),
    ],
)
def test_what_templates_use_works(source: str, context: dict[str, Any], written: str) -> None:
    assert render_template(source, context) == written


def test_a_template_raises_in_its_own_words() -> None:
    with pytest.raises(TemplateError, match="Only on Sundays"):
        render_template("{{ raise_exception('Only on Sundays') }}", {})


def test_a_template_that_does_not_compile_fails_and_has_no_variables() -> None:
    broken = "{% if %}"
    with pytest.raises(TemplateError):
        render_template(broken, {})
    assert not undeclared_variables(broken)
    assert literal_text(broken) == ""


def test_variables_and_literals_are_found() -> None:
    source = "{% if enable_thinking %}<think>{% endif %}{{ '<|im_end|>' + x }}"
    assert undeclared_variables(source) == {"enable_thinking", "x"}
    assert "<think>" in literal_text(source) and "<|im_end|>" in literal_text(source)
