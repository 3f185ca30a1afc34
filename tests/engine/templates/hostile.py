"""Templates that would take hours or gigabytes, each within one call that Python cannot interrupt."""

from __future__ import annotations

import resource

from tqchat.engine.templates import limits
from tqchat.engine.templates.errors import TemplateError
from tqchat.engine.templates.sandbox import render_template

_BIG = "{% set x = 'a' * 1000000 %}"
_LIST = "{% set l = range(100000) | list %}"
_DOUBLED = (
    "{% set ns = namespace(x=[1, 2]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
)
_OTHER = "{% set no = namespace(x=[1, 2]) %}{% for i in range(60) %}{% set no.x = [no.x, no.x] %}{% endfor %}"
_NUMBER = "{% set ns = namespace(x=10) %}{% for i in range(90) %}{% set ns.x = ns.x * ns.x %}{% endfor %}"
_WORD = "a@" + "a." * 50_000 + "!"

HOSTILE = {
    "wordwrap": _BIG + "{{ x | wordwrap(1) }}",
    "wordwrap's own text": "{{ ('a ' * 9000) | wordwrap(1, wrapstring='x' * 1000000) }}",
    "a long template": "{% if 1 %}" + "{{ [1][0:] }}" * 19_000 + "{% endif %}",
    "urlize": "{{ '" + _WORD + "' | urlize }}",
    "urlize of brackets": "{{ ('(' * 500000) | urlize }}",
    "striptags": "{{ ('<!---->' * 1000000) | striptags }}",
    "striptags of a safe text": "{{ (('<!---->' * 1000000) | safe).striptags() }}",
    "indent": "{{ ('a\n' * 1000000) | indent(1000000) }}",
    "indent by a text": "{{ ('a\n' * 1000000) | indent('x' * 1000000) }}",
    "join": _BIG + "{{ x | join(x) }}",
    "join of a list": _LIST + _BIG + "{{ l | join(x) }}",
    "join of a generator": _LIST + _BIG + "{{ l | map('string') | join(x) }}",
    "join as a method": _BIG + _LIST + "{{ x.join(l | map('string') | list) }}",
    "center, often": "{% for i in range(100000) %}{{ ('a' ~ i) | center(1000000) }}{% endfor %}",
    "kept slices": _BIG + "{% set l = [" + "x[1:], " * 2_000 + "] %}{{ l | length }}",
    "format": "{{ ('%999999s' * 10000) | format('a') }}",
    "%": "{{ ('%(a)s' * 15000) % {'a': 'x' * 1000000} }}",
    "% with a width of its own": "{{ '%*d' % (900000000, 1) }}",
    "str.format": "{{ '{:>999999999}'.format('a') }}",
    "str.format, nested": "{{ '{:>{w}}'.format('a', w='999999999') }}",
    "str.format, many fields": _BIG + "{{ ('{0}' * 30000).format(x) }}",
    "str.format_map": _BIG + "{{ ('{a}' * 30000).format_map({'a': x}) }}",
    "repeated text": "{{ 'a' * 999999999999 }}",
    "repeated list": "{{ ([1] * 1000000) * 1000000 }}",
    "repeated lists of lists": "{% set l = [[[['a'] * 200] * 200] * 200] * 200 %}{{ l }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "powers of powers": "{{ ((((7 ** 60) ** 60) ** 60) ** 60) ** 60 }}",
    "squares": _NUMBER + "{{ ns.x }}",
    "a number in base 16": "{% set n = ('f' * 9000000) | int(base=16) %}{{ n * n }}",
    "a long float": "{{ ('9' * 16000000) | float }}",
    "range": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "range as a list": "{{ range(100000000) | list }}",
    "replace": _BIG + "{{ x.replace('a', x) }}",
    "replace, by name": _BIG + "{{ x.replace('a', new=x) }}",
    "the filter replace": _BIG + "{{ x | replace('a', new=x) }}",
    "replace nothing": _BIG + "{{ x | replace('', x) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'x' * 1000000}) }}",
    "expandtabs": "{{ ('\t' * 1000000).expandtabs(1000000) }}",
    "split": "{% for i in range(1000) %}{% set y = ('a,' * 8000000).split(',') %}{% endfor %}",
    "characters": "{{ ('a' * 16000000) | list | sort | unique | list | length }}",
    "nested sorts": "{% for i in range(99999) %}{% set y = range(99999) | sort | sort %}{% endfor %}",
    "sums of lists": "{{ ([[1]] * 90000) | sum(start=[]) }}",
    "map of lists": _BIG + "{{ ([x] * 1000) | map('list') | list | length }}",
    "a text of a nest": _DOUBLED + "{{ ns.x }}",
    "a nest as JSON": _DOUBLED + "{{ ns.x | tojson }}",
    "a nest as a string": _DOUBLED + "{{ ns.x | string | length }}",
    "two nests compared": _DOUBLED + _OTHER + "{{ ns.x == no.x }}",
    "nests by adding": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x] + [ns.x] %}{% endfor %}{{ ns.x }}",
    "namespaces in each other": "{% set ns = namespace(x=1) %}{% for i in range(60) %}"
    "{% set ns = namespace(x=ns, y=ns) %}{% endfor %}{{ ns }}" + "{{ 'a' * 99999999999 }}",
    "JSON indented": "{{ [[[1] * 1000] * 100] | tojson(indent=1000000) }}",
    "JSON's own separators": "{{ ([1] * 10000) | tojson(separators=('x' * 1000000, ':')) }}",
    "a macro's text": _BIG + "{% macro m() %}{% for i in range(99999) %}{{ x }}{% endfor %}{% endmacro %}"
    "{{ m() | length }}",
    "a block's text": _BIG + "{% set y %}{% for i in range(99999) %}{{ x }}{% endfor %}{% endset %}",
    "a block's plain text": "{% set y %}{% for i in range(99999) %}"
    + "a" * 100_000
    + "{% endfor %}{% endset %}",
    "recursive loops": "{% for a in [1] recursive %}{{ loop(range(90000)) }}{% endfor %}",
    "colliding keys": "{% set ns = namespace(l=[]) %}{% set l = [" + "2305843009213693951, " * 9_000 + "] %}"
    "{{ (l * 20) | unique | list }}",
    "a long date": "{{ strftime_now('%p' * 1000000) }}",
    "comparisons": _BIG + "{% set y = x ~ 'b' %}{% for i in range(99999) %}"
    "{% for j in range(99999) %}{% if x in y %}{% endif %}{% endfor %}{% endfor %}",
    "tests": "{% for i in range(99999) %}{% for j in range(99999) %}{% if i is odd %}{% endif %}{% endfor %}"
    "{% endfor %}",
    "a nest of brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "a nest of conditions": "{% if 1 %}" * 30_000 + "{% endif %}" * 30_000,
    "pretty-printed": "{{ ([[1, 2]] * 100000) | pprint }}",
    "bytes": "{{ ('a' * 1000000).encode() }}",
}
"""By what is attacked."""


def main() -> None:
    """Run all of them with little memory and time; prints those that did not end in an error."""
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    limits.RENDER_LIMIT_S = 0.5
    for name, source in HOSTILE.items():
        try:
            text = render_template(source, {})
        except TemplateError:
            continue
        print(f"{name}: {len(text)} characters")


if __name__ == "__main__":
    main()
