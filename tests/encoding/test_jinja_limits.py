"""Hostile chat templates: whatever they do takes a second and a few hundred megabytes at most, on any thread."""

from __future__ import annotations

import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.encoding.jinja_limits import MAX_SIZE, size_of_format, size_of_joining, size_of_replacing
from tuneful.encoding.jinja_sandbox import SandboxedTemplate
from tuneful.errors import TemplateError

MESSAGES = [{"role": "user", "content": "x"}]
LONG = "{% set x = 'a' * 1000000 %}"


def again(start: str, change: str, end: str) -> str:
    """A template that makes its value `ns.x` grow sixty times."""
    return f"{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{change}{{% endfor %}}{end}"


def many(statement: str) -> str:
    """`statement` a hundred times, `#` being its number."""
    return LONG + "".join(statement.replace("#", str(number)) for number in range(100))


HOSTILE = {
    "text joined to itself": again("'a'", "{% set ns.x = ns.x ~ ns.x %}", "{{ ns.x }}"),
    "text added to itself": again("'a'", "{% set ns.x = ns.x + ns.x %}", "{{ ns.x | length }}"),
    "a list in itself": again("['a']", "{% set ns.x = [ns.x, ns.x] %}", "{{ ns.x }}"),
    "a pair in itself": again("(1,)", "{% set ns.x = (ns.x, ns.x) %}", "{{ ns.x == ns.x }}"),
    "a mapping in itself": again("{'a': 1}", "{% set ns.x = {'a': ns.x, 'b': ns.x} %}", "{{ ns.x | string }}"),
    "a called mapping in itself": again("dict(a=1)", "{% set ns.x = dict(a=ns.x, b=ns.x) %}", "{{ ns.x }}"),
    "a namespace in itself": again("1", "{% set ns.x = namespace(a=ns.x, b=ns.x) %}", "{{ ns.x }}"),
    "a namespace that holds itself": "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "a list added to itself": again("[1]", "{% set ns.x = ns.x + ns.x %}", "{{ ns.x | length }}"),
    "a number times itself": again("7", "{% set ns.x = ns.x * ns.x %}", "{{ ns.x }}"),
    "powers of powers": "{{ ((10 ** 64) ** 64) ** 64 }}",
    "digits": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "a width": "{{ '%0999999999d' | format(1) }}",
    "a width that is given": "{{ '%*d' | format(999999999, 1) }}",
    "a width of a method": "{{ '{:>999999999}'.format(1) }}",
    "a width inside a field": "{{ '{:>{w}}'.format(1, w=999999999) }}",
    "a width of a mapping": "{{ '{a:>999999999}'.format_map({'a': 1}) }}",
    "a format of long text": LONG + "{{ ('{0}' * 1000).format(x) }}",
    "a mapped width": "{{ ['%99999999d'] | map('format', 1) | list }}",
    "replacing": LONG + "{{ x.replace('a', x) | length }}",
    "replacing nothing": LONG + "{{ x | replace('', x) | length }}",
    "joining": "{{ range(99999) | join('a' * 1000000) | length }}",
    "joining by a method": "{{ ('a' * 1000000).join(['b'] * 9000) | length }}",
    "indenting": "{{ ('\\n' * 100000) | indent(10000000) | length }}",
    "indenting by text": "{{ ('\\n' * 100000) | indent('a' * 1000000) | length }}",
    "indented JSON": "{{ messages | tojson(indent=100000000) | length }}",
    "a sum of lists": "{{ ([[1]] * 60000) | sum(start=[]) | length }}",
    "filler text": "{{ lipsum(n=10000000) }}",
    "lines of filler": "{{ [1] | batch(1000000000, 0) | list | length }}",
    "printed over and over": LONG
    + "{% set y %}{% for i in range(99999) %}{{ x }}{% endfor %}{% endset %}{{ y | length }}",
    "its own text over and over": "{% set y %}{% for i in range(99999) %}" + "a" * 90000 + "{% endfor %}{% endset %}",
    "a macro that calls itself twice": (
        "{% macro m(n) %}{{ 'a' * 100000 }}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "many joined": many("{% set y# = x ~ 'b' %}"),
    "many slices": many("{% set y# = x[1:] %}"),
    "many bytes": many("{% set y# = x.encode() %}"),
    "many upper": many("{% set y# = x | upper %}"),
    "split": "{{ ('ab' * 1000000).split('b') | length }}",
    "its characters": LONG + "{{ x | list | length }}",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "long": "{{ 1 + 1 }}" * 11000,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_template_is_refused_within_time_and_memory_on_another_thread(what: str) -> None:
    def render() -> str:
        return SandboxedTemplate(HOSTILE[what], "t").render(MESSAGES, {}, is_prompt=True)

    began = time.process_time()
    tracemalloc.start(1)
    try:
        with pytest.raises(TemplateError, match=r"^t:"), ThreadPoolExecutor(1) as pool:
            pool.submit(render).result()
        assert tracemalloc.get_traced_memory()[1] < 400e6
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 30, "stopped by its limits, though it is traced"


USUAL = {
    "{% for m in messages %}{{ m.role + ': ' + m['content'] | trim ~ '\\n' }}{% endfor %}": "user: x\n",
    "{{ messages[0:1] | tojson }}": '[{"role": "user", "content": "x"}]',
    "{{ messages | map(attribute='role') | join(', ') }}{{ '-'.join(['a', 'b']) }}": "usera-b",
    "{{ 'a-b'.replace('-', '+') }}{{ '%s!' | format('hi') }}{{ '{} {a}'.format(1, a=2) }}": "a+bhi!1 2",
    "{% set ns = namespace(n=0) %}{% for m in messages if m.role %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}": "1",
    "{% macro m(a, b=[1, 2]) %}{{ a }}{{ b[::-1] }}{% endmacro %}{{ m('x') }}": "x[2, 1]",
    "{% set a, b = ('c', 'd') %}{{ b ~ a }}{{ {'k': a}.k }}{{ dict(k=b).items() | list }}": "dcc[('k', 'd')]",
    "{{ 'a\\nb' | indent(4) }}{{ [3, 1] | sort | first }}{{ [1, 2] | sum }}": "a\n    b13",
}


@pytest.mark.parametrize("source", USUAL)
def test_what_templates_usually_do_is_done(source: str) -> None:
    assert SandboxedTemplate(source, "t").render(MESSAGES, {}, is_prompt=True) == USUAL[source]


def test_a_long_conversation_is_rendered() -> None:
    source = "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.content | trim %}{% endfor %}{{ ns.t }}"
    messages = [{"role": "user", "content": "word " * 200} for _ in range(200)]
    rendered = SandboxedTemplate(source, "t").render(messages, {}, is_prompt=True)
    assert len(rendered) == 200 * 999


texts = st.text("ab%{}", max_size=6)


@given(texts, texts, texts)
def test_the_size_of_replacing_is_never_less_than_the_result(text: str, old: str, new: str) -> None:
    assert size_of_replacing(text, old, new) >= len(text.replace(old, new))


@given(texts, st.lists(texts))
def test_the_size_of_joining_is_never_less_than_the_result(separator: str, values: list[str]) -> None:
    assert MAX_SIZE > size_of_joining(separator, values) >= len(separator.join(values))


@given(st.lists(texts, max_size=3))
def test_the_size_of_a_format_is_never_less_than_the_result(values: list[str]) -> None:
    text = "a {} " * len(values)
    assert size_of_format(text, values) >= len(text.format(*values))
