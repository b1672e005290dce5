"""Whatever comes, a parser answers or refuses: no other exception, and the same answer for every cut."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.usage import AtLeast, Exact, NotServed
from gateway.errors import BadRequest
from gateway.providers.families import family
from gateway.providers.tokens import Counter
from tests.unit.providers.goldens import ADAPTERS, ALL, Golden, run, title

KINDS = """text image document tool_use tool_result thinking redacted_thinking image_url input_image input_audio file
input_file refusal reasoning message function_call_output computer_call_output image_generation_call item_reference
base64 url enabled"""
NAMES = """type text content source data image_url url detail input output summary thinking budget_tokens file file_data
name input_audio tool_calls function role item encrypted_content title include_usage format schema result"""
OPTIONS = """instructions system tools functions thinking stream stream_options n best_of text prompt response_format
max_tokens max_completion_tokens max_output_tokens prediction output_config metadata background conversation"""


def one_of(words: str) -> st.SearchStrategy[str]:
    return st.sampled_from(words.split())


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | one_of(KINDS)
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(one_of(NAMES) | st.text(max_size=3), inner, max_size=5)
        | st.builds(lambda kind, rest: {**rest, "type": kind}, one_of(KINDS), st.dictionaries(one_of(NAMES), inner))
    ),
    max_leaves=25,
)
TURNS = st.lists(st.dictionaries(one_of(NAMES) | st.just("content"), JSON, min_size=1, max_size=4), min_size=1)


@pytest.mark.parametrize("dialect", list(ADAPTERS))
@settings(derandomize=True, deadline=None, max_examples=30)
@given(turns=TURNS | JSON, fields=st.dictionaries(one_of(OPTIONS), JSON, max_size=2))
def test_any_json_object_is_a_call_or_a_bad_request(dialect: str, turns: Any, fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "gpt-5", "messages": turns, "input": turns, **fields}).encode()
    adapter = ADAPTERS[dialect]
    try:
        call = adapter.parse(body, {})
    except BadRequest as refused:
        assert refused.code in ("invalid_request", "invalid_max_tokens", "field_not_allowed")
        return
    assert call.choices >= 1
    assert call.output_floor >= 0
    assert Counter().count(call.prompt, family(call.model)) >= 0
    out = adapter.rewrite(call, model="gpt-5-other", output_tokens_max=77, output_field=None)
    changed = json.loads(out)
    assert changed["model"] == "gpt-5-other"
    assert 77 in (changed.get("max_tokens"), changed.get("max_completion_tokens"), changed.get("max_output_tokens"))
    again = adapter.parse(out, {})
    assert (again.output_tokens_asked, again.prompt, again.usage_hidden) == (77, call.prompt, False)


@pytest.mark.parametrize("dialect", list(ADAPTERS))
@settings(derandomize=True, deadline=None, max_examples=30)
@given(body=st.binary(max_size=60) | st.text(alphabet='{}[]":,\\u0d8e1 \n', max_size=60).map(str.encode))
def test_any_bytes_are_a_call_or_a_bad_request(dialect: str, body: bytes) -> None:
    with pytest.raises(BadRequest):
        ADAPTERS[dialect].parse(body, {})


MUTATIONS = 40


@pytest.mark.parametrize("golden", ALL, ids=title)
def test_a_damaged_answer_is_relayed_and_never_costs_less_than_nothing(golden: Golden) -> None:
    dice = random.Random(golden.name)
    for _ in range(MUTATIONS):
        data = bytearray(golden.data)
        for _ in range(dice.randint(1, 6)):
            at = dice.randrange(len(data))
            match dice.randrange(4):
                case 0:
                    data[at] = dice.choice(b'\n\r":{}[],\\\x00\xff-9ae')
                case 1:
                    del data[at : at + dice.randint(1, 30)]
                case 2:
                    data[at:at] = data[dice.randrange(len(data)) :][: dice.randint(1, 40)]
                case _:
                    data[at:at] = dice.choice([b"\n\n", b"\r\n\r\n", b"\r", b'"usage":{', b"-", b": x\n"])
            data = data or bytearray(b"x")
        whole = golden.scanner()
        assert run(whole, [bytes(data)]) == data
        wanted = whole.outcome()
        match wanted:
            case Exact(usage) | AtLeast(usage):
                assert min(usage.input, usage.cache_read, usage.output, usage.reasoning) >= 0
                assert usage.reasoning <= usage.output
            case NotServed():
                pass
        cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.randint(1, 9)))
        places = [0, *cuts, len(data)]
        pieces = [bytes(data[start:end]) for start, end in itertools.pairwise(places)]
        parts = golden.scanner()
        assert run(parts, pieces) == data
        assert parts.outcome() == wanted
        hiding = golden.scanner(hidden=True)
        hidden = run(hiding, pieces)
        again = golden.scanner(hidden=True)
        assert run(again, [bytes([byte]) for byte in data]) == hidden
        assert hiding.outcome() == wanted
