"""Rewrites touch the fields they must and not a byte more."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.providers.rewriting import with_fields
from tests.unit.providers.goldens import ADAPTERS


def rewritten(
    dialect: str, body: str, model: str | None = None, bound: int | None = None, output_field: str | None = None
) -> str:
    adapter = ADAPTERS[dialect]
    call = adapter.parse(body.encode(), {})
    out = adapter.rewrite(call, model=model, output_tokens_max=bound, output_field=output_field)
    if out.decode() == body:
        assert out is call.body
    return out.decode()


M = '"messages":[{"role":"user","content":"max_tokens: 5 {}"}]'
# (dialect, body, what changes, the body afterwards)
CASES: list[tuple[str, str, dict[str, Any], str]] = [
    # nothing to do
    ("anthropic", f'{{"model":"a","max_tokens":9,{M}}}', {}, f'{{"model":"a","max_tokens":9,{M}}}'),
    ("anthropic", f'{{"model":"a","max_tokens":9,{M}}}', {"bound": 9}, f'{{"model":"a","max_tokens":9,{M}}}'),
    ("openai_chat", f'{{"model":"a",{M}}}', {"model": "a"}, f'{{"model":"a",{M}}}'),
    # alias
    ("anthropic", f'{{ "model" : "a" ,{M}}}', {"model": "b-1"}, f'{{ "model" : "b-1" ,{M}}}'),
    ("openai_responses", '{"input":"model","model":"a"}', {"model": "b"}, '{"input":"model","model":"b"}'),
    # the bound, in the field that was sent
    ("anthropic", f'{{"max_tokens": 64000,{M},"model":"a"}}', {"bound": 5}, f'{{"max_tokens": 5,{M},"model":"a"}}'),
    ("openai_chat", f'{{"model":"a","max_tokens":9,{M}}}', {"bound": 5}, f'{{"model":"a","max_tokens":5,{M}}}'),
    (
        "openai_chat",
        f'{{"model":"a","max_completion_tokens":9,{M}}}',
        {"bound": 5, "output_field": "max_tokens"},
        f'{{"model":"a","max_completion_tokens":5,{M}}}',
    ),
    (
        "openai_responses",
        '{"max_output_tokens":9,"model":"a","input":"x"}',
        {"bound": 5},
        '{"max_output_tokens":5,"model":"a","input":"x"}',
    ),
    # the bound, where there was none
    ("anthropic", f'{{"model":"a",{M}}}', {"bound": 5}, f'{{"model":"a",{M},"max_tokens":5}}'),
    ("openai_chat", f'{{"model":"a",{M}}}\n', {"bound": 5}, f'{{"model":"a",{M},"max_completion_tokens":5}}\n'),
    (
        "openai_chat",
        f'{{"model":"a",{M}}}',
        {"bound": 5, "output_field": "max_tokens"},
        f'{{"model":"a",{M},"max_tokens":5}}',
    ),
    (
        "openai_chat",
        f'{{"model":"a","max_completion_tokens":null,{M}}}',
        {"bound": 5},
        f'{{"model":"a","max_completion_tokens":5,{M}}}',
    ),
    (
        "openai_responses",
        '{"model":"a","input":"x"}',
        {"bound": 5, "output_field": "max_tokens"},
        '{"model":"a","input":"x","max_output_tokens":5}',
    ),
    # usage is asked for in a stream
    (
        "openai_chat",
        f'{{"model":"a","stream":true,{M}}}',
        {},
        f'{{"model":"a","stream":true,{M},"stream_options":{{"include_usage":true}}}}',
    ),
    (
        "openai_chat",
        f'{{"stream_options":null,"model":"a","stream":true,{M}}}',
        {},
        f'{{"stream_options":{{"include_usage":true}},"model":"a","stream":true,{M}}}',
    ),
    (
        "openai_chat",
        f'{{"stream_options": {{"include_obfuscation": false, "include_usage": false}},"model":"a","stream":true,{M}}}',
        {},
        f'{{"stream_options": {{"include_obfuscation":false,"include_usage":true}},"model":"a","stream":true,{M}}}',
    ),
    (
        "openai_chat",
        f'{{"stream_options":{{"include_usage":true}},"model":"a","stream":true,{M}}}',
        {},
        f'{{"stream_options":{{"include_usage":true}},"model":"a","stream":true,{M}}}',
    ),
    ("openai_chat", f'{{"stream_options":{{}},"model":"a",{M}}}', {}, f'{{"stream_options":{{}},"model":"a",{M}}}'),
    # the same words elsewhere, escapes, numbers that a serializer would change
    (
        "openai_chat",
        f'{{"metadata":{{"model":"a","max_tokens":"9"}},"model":"a","max_tokens":9,"seed":123456789012345678901,{M}}}',
        {"model": "b", "bound": 5},
        f'{{"metadata":{{"model":"a","max_tokens":"9"}},"model":"b","max_tokens":5,"seed":123456789012345678901,{M}}}',
    ),
    (
        "anthropic",
        f'{{"mod\\u0065l":"a","x":"max_tokens","temperature":1.10,"top_p":1E0,"max_tokens":9,{M}}}',
        {"model": "b", "bound": 5},
        f'{{"mod\\u0065l":"b","x":"max_tokens","temperature":1.10,"top_p":1E0,"max_tokens":5,{M}}}',
    ),
    (
        "anthropic",
        f'{{"user":"\\u00e9 世界 🚀 \\ud83d\\ude80","model":"claude \\"q\\"","max_tokens":9,{M}}}',
        {"model": "b", "bound": 5},
        f'{{"user":"\\u00e9 世界 🚀 \\ud83d\\ude80","model":"b","max_tokens":5,{M}}}',
    ),
]


@pytest.mark.parametrize(("dialect", "body", "changes", "wanted"), CASES)
def test_a_rewrite_changes_its_fields_and_no_other_byte(
    dialect: str, body: str, changes: dict[str, Any], wanted: str
) -> None:
    assert rewritten(dialect, body, **changes) == wanted


NUMBERS = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("model"), inner, max_size=3)
    ),
    max_leaves=12,
)
NAMES = ("model", "max_tokens", "stream_options")


@settings(derandomize=True, deadline=None)
@given(
    fields=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=6), JSON, max_size=6),
    changes=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_a_spliced_body_parses_to_the_changed_object_in_the_same_order(
    fields: dict[str, Any], changes: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    body = json.dumps(fields, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace")
    fields = json.loads(body)
    out = with_fields(body, fields, changes)
    assert json.loads(out) == {**fields, **changes}
    assert list(json.loads(out)) == list({**fields, **changes})
    if all(name in fields and fields[name] == value for name, value in changes.items()):
        assert out is body


BIG = (
    '"messages":[{"role":"user","content":"'
    + "word {} [] \\\\ \\u00e9 " * 4_000
    + '","max_tokens":1,"model":"nested"}]'
)
EARLY, LATE = '"model":"a","max_tokens":9', '"metadata":{"max_tokens":"2"}'


@pytest.mark.parametrize(
    "parts", [(EARLY, BIG, LATE), (LATE, BIG, EARLY), (BIG, EARLY, BIG.replace("messages", "x")), (LATE, EARLY, BIG)]
)
def test_a_field_is_found_wherever_it_stands_in_a_large_body(parts: tuple[str, ...]) -> None:
    body = "{" + ", ".join(parts) + "}"
    wanted = body.replace(EARLY, '"model":"b","max_tokens":5')
    assert rewritten("anthropic", body, "b", 5) == wanted
