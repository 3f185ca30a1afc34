"""Templates are untrusted: no way out of the sandbox, no endless rendering, no endless text."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tqchat.engine.templates import limits
from tqchat.engine.templates.errors import TemplateError, TemplateLimit, TemplateStopped
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
    began = time.process_time()  # not the clock, which goes on while others have the processor
    with pytest.raises(TemplateError):
        render_template(source, {"text": "abc" * 10_000})
    assert time.process_time() - began < 30


def test_no_single_call_takes_long_or_much_memory() -> None:
    """In a process of its own, whose memory is limited."""
    command = [sys.executable, "-m", "tests.engine.templates.hostile"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=300)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


def test_all_attempts_at_one_prompt_share_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STEPS", 1_000)
    source = "{% for i in range(400) %}{% endfor %}"
    for _ in range(5):
        render_template(source, {})
    with limits.one_budget():
        render_template(source, {})
        render_template(source, {})
        with pytest.raises(TemplateLimit):
            render_template(source, {})


def test_a_rendering_stops_when_the_user_does() -> None:
    asked = iter([False] * 100 + [True] * 100)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with limits.stopped_by(lambda: next(asked)), pytest.raises(TemplateStopped):
        render_template(endless, {})


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
        ("{{ '%-5s|%05.1f' | format('a', 2) }}", {}, "a    |002.0"),
        ("{{ '{} {:>3} {a}'.format(1, 'b', a=2) }}{{ '{x}'.format_map({'x': 1}) }}", {}, "1   b 21"),
        ("{{ 'a-b-c'.split('-')[1:] | join('+') }}{{ ', '.join(['a', 'b']) }}", {}, "b+ca, b"),
        ("{{ 'a b' | wordwrap(1) }}{{ 'a\nb' | indent(2) }}{{ '<b>a</b>' | striptags }}", {}, "a\nba\n  ba"),
        ("{{ {'a': [1, {'b': (2, 3)}]} | tojson(indent=2) | length }}{{ [3, 1] | sort }}", {}, "77[1, 3]"),
        (
            "{{ ms[-1].a + ms[:-1] | length }}{{ ms | map(attribute='a') | sum }}",
            {"ms": [{"a": 1}, {"a": 2}]},
            "33",
        ),
        ("{{ 2 ** 10 + 7 // 2 * 3 - 1 }}{{ 'ab' * 2 }}{{ [1] * 2 + [3] }}", {}, "1032abab[1, 1, 3]"),
        ("{% for a, b in [(1, 2), (3, 4)] %}{{ a < b }}{{ loop.length }}{% endfor %}", {}, "True2True2"),
        (
            "{% for g in ms | groupby('a') %}{{ g.grouper }}{{ g.list | length }}{% endfor %}",
            {"ms": [{"a": 1}, {"a": 1}]},
            "12",
        ),
        ("{{ cycler('a', 'b').next() }}{{ namespace(a=1) }}{{ 'x' in ['x'] }}", {}, "a<Namespace>True"),
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
