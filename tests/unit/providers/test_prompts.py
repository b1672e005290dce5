"""What a model reads is counted: all of it, part by part, with a bound for what cannot be read."""

from __future__ import annotations

import json
from base64 import b64encode
from struct import pack
from typing import Any

import pytest

from gateway.providers import media
from gateway.providers.adapter import Prompt
from gateway.providers.families import CLAUDE, CLAUDE_NEW
from tests.unit.providers.goldens import ADAPTERS


def png(width: int, height: int) -> str:
    return b64encode(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + pack(">II", width, height) + b"\0" * 50).decode()


def jpeg(width: int, height: int, metadata_bytes: int = 100) -> str:
    app = b"\xff\xe1" + pack(">H", metadata_bytes + 2) + b"\0" * metadata_bytes
    frame = b"\xff\xc2" + pack(">HBHH", 17, 8, height, width) + b"\0" * 20
    return b64encode(b"\xff\xd8" + app + frame).decode()


def gif(width: int, height: int) -> str:
    return b64encode(b"GIF89a" + pack("<HH", width, height) + b"\0" * 20).decode()


def webp(kind: bytes, width: int, height: int) -> str:
    head = b"RIFF\0\0\0\0WEBP" + kind + b"\0\0\0\0"
    if kind == b"VP8X":
        body = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        body = b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + b"\0" * 9
    else:
        body = b"\0\0\0\x9d\x01\x2a" + pack("<HH", width, height)
    return b64encode(head + body + b"\0" * 10).decode()


def prompt_of(dialect: str, **fields: Any) -> Prompt:
    body = {"model": {"anthropic": "claude-sonnet-4-5"}.get(dialect, "gpt-5"), **fields}
    return ADAPTERS[dialect].parse(json.dumps(body).encode(), {}).prompt


def user(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


# --- every word is there -----------------------------------------------------------------------------------------

WORDS: list[tuple[str, dict[str, Any]]] = [
    ("anthropic", {"messages": [{"role": "user", "content": "WORD"}]}),
    ("anthropic", {"messages": user({"type": "text", "text": "WORD", "cache_control": {"type": "ephemeral"}})}),
    ("anthropic", {"messages": user("x"), "system": "WORD"}),
    ("anthropic", {"messages": user("x"), "system": [{"type": "text", "text": "WORD"}]}),
    ("anthropic", {"messages": user("x"), "tools": [{"name": "t", "description": "WORD", "input_schema": {}}]}),
    ("anthropic", {"messages": user("x"), "tools": [{"name": "t", "input_schema": {"properties": {"WORD": {}}}}]}),
    ("anthropic", {"messages": user({"type": "tool_use", "id": "1", "name": "t", "input": {"a": ["WORD"]}})}),
    ("anthropic", {"messages": user({"type": "tool_use", "id": "1", "name": "WORD", "input": {}})}),
    ("anthropic", {"messages": user({"type": "tool_result", "tool_use_id": "1", "content": "WORD"})}),
    (
        "anthropic",
        {"messages": user({"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "WORD"}]})},
    ),
    ("anthropic", {"messages": user({"type": "thinking", "thinking": "WORD", "signature": "s"})}),
    ("anthropic", {"messages": user({"type": "redacted_thinking", "data": "WORD"})}),
    ("anthropic", {"messages": user({"type": "document", "source": {"type": "text", "data": "WORD"}})}),
    ("anthropic", {"messages": user({"type": "document", "title": "WORD", "source": {"type": "url", "url": "u"}})}),
    (
        "anthropic",
        {
            "messages": user(
                {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "WORD"}]}}
            )
        },
    ),
    ("anthropic", {"messages": user({"type": "search_result", "content": [{"type": "text", "text": "WORD"}]})}),
    ("anthropic", {"messages": user({"type": "of_tomorrow", "anything": {"at": "WORD"}})}),
    ("anthropic", {"messages": user({"type": "text", "text": ["WORD"]})}),
    ("anthropic", {"messages": [{"role": "user", "content": {"odd": "WORD"}}]}),
    ("anthropic", {"messages": user("x"), "output_config": {"format": {"type": "json_schema", "schema": ["WORD"]}}}),
    ("openai_chat", {"messages": [{"role": "user", "content": "WORD"}]}),
    ("openai_chat", {"messages": user({"type": "text", "text": "WORD"})}),
    ("openai_chat", {"messages": [{"role": "user", "content": "x", "name": "WORD"}]}),
    ("openai_chat", {"messages": [{"role": "assistant", "refusal": "WORD"}]}),
    ("openai_chat", {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "WORD"}]}]}),
    ("openai_chat", {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "WORD"}}]}]}),
    ("openai_chat", {"messages": [{"role": "assistant", "function_call": {"name": "WORD"}}]}),
    ("openai_chat", {"messages": [{"role": "assistant", "content": None, "reasoning_content": "WORD"}]}),
    ("openai_chat", {"messages": user("x"), "tools": [{"type": "function", "function": {"name": "WORD"}}]}),
    ("openai_chat", {"messages": user("x"), "functions": [{"name": "f", "description": "WORD"}]}),
    ("openai_chat", {"messages": user("x"), "response_format": {"type": "json_schema", "json_schema": {"n": "WORD"}}}),
    ("openai_chat", {"messages": user("x"), "prediction": {"type": "content", "content": "WORD"}}),
    ("openai_chat", {"messages": user({"type": "of_tomorrow", "anything": "WORD"})}),
    ("openai_chat", {"messages": [{"role": "user", "content": {"odd": "WORD"}}]}),
    ("openai_responses", {"input": "WORD"}),
    ("openai_responses", {"input": "x", "instructions": "WORD"}),
    ("openai_responses", {"input": "x", "instructions": [{"role": "system", "content": "WORD"}]}),
    ("openai_responses", {"input": [{"role": "user", "content": "WORD"}]}),
    ("openai_responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "WORD"}]}]}),
    ("openai_responses", {"input": [{"type": "function_call", "name": "f", "arguments": "WORD", "call_id": "1"}]}),
    ("openai_responses", {"input": [{"type": "function_call_output", "call_id": "1", "output": "WORD"}]}),
    ("openai_responses", {"input": [{"type": "function_call_output", "output": [{"type": "x", "text": "WORD"}]}]}),
    ("openai_responses", {"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "WORD"}]}]}),
    ("openai_responses", {"input": [{"type": "of_tomorrow", "anything": "WORD"}]}),
    ("openai_responses", {"input": "x", "tools": [{"type": "function", "name": "f", "description": "WORD"}]}),
    ("openai_responses", {"input": "x", "text": {"format": {"type": "json_schema", "schema": {"W": "WORD"}}}}),
    ("openai_responses", {"prompt": {"id": "p", "variables": {"v": "WORD"}}}),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "fields"), WORDS)
def test_every_word_that_a_model_reads_is_counted(dialect: str, fields: dict[str, Any]) -> None:
    assert sum(text.count("WORD") for text in prompt_of(dialect, **fields).texts) == 1


def test_each_part_is_a_text_of_its_own() -> None:
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": [{"type": "text", "text": "two"}]}]
    assert prompt_of("anthropic", messages=messages, system="zero").texts == ("zero", "one", "two")
    assert prompt_of("openai_chat", messages=messages).texts == ("one", "two")
    assert prompt_of("openai_responses", input=messages, instructions="zero").texts == ("zero", "one", "two")


def test_framing_grows_with_messages_and_tools() -> None:
    for dialect in ("anthropic", "openai_chat"):
        one = prompt_of(dialect, messages=[{"role": "user", "content": "x"}])
        three = prompt_of(dialect, messages=[{"role": "user", "content": "x"}] * 3)
        tools = prompt_of(dialect, messages=[{"role": "user", "content": "x"}], tools=[{"name": "t"}])
        server = prompt_of(dialect, messages=[{"role": "user", "content": "x"}], tools=[{"type": "web_search_1"}])
        assert one.framing_tokens + 8 == three.framing_tokens
        if dialect == "openai_chat":
            named = prompt_of(dialect, messages=[{"role": "user", "content": "x", "name": "ann"}])
            assert named.framing_tokens == one.framing_tokens + 1
        assert one.framing_tokens < tools.framing_tokens < server.framing_tokens - 1_000


# --- images and documents ----------------------------------------------------------------------------------------

SIZES: list[tuple[str, tuple[int, int] | None]] = [
    (png(640, 480), (640, 480)),
    (jpeg(4032, 3024), (4032, 3024)),
    (jpeg(800, 600, 40_000), (800, 600)),
    (gif(10, 20), (10, 20)),
    (webp(b"VP8X", 1000, 2000), (1000, 2000)),
    (webp(b"VP8L", 300, 200), (300, 200)),
    (webp(b"VP8 ", 300, 200), (300, 200)),
    (png(0, 5), None),
    (png(10**6, 5), None),
    ("AAAA", None),
    ("", None),
    ("not base64 at all!", None),
    (png(64, 64)[:20], None),
    ("世界" * 50, None),
    (b64encode(b"\xff\xd8\xff\xe0\0\0").decode(), None),
    (b64encode(b"\xff\xd8" + b"\xff\xe0\xff\xff" * 9).decode(), None),
]


@pytest.mark.parametrize(("data", "size"), SIZES)
def test_an_images_size_is_read_from_its_first_bytes(data: str, size: tuple[int, int] | None) -> None:
    assert media.image_size(data) == size


def test_claude_images_cost_their_area_up_to_the_models_most() -> None:
    assert media.claude_image(CLAUDE, png(750, 1000)) == max(1000, 27 * 36)
    assert media.claude_image(CLAUDE, png(200, 200)) == 64  # 8 x 8 patches, a little above 200 x 200 / 750
    assert media.claude_image(CLAUDE, png(8000, 8000)) == media.claude_image(CLAUDE, None) == 1_640
    assert media.claude_image(CLAUDE_NEW, png(8000, 8000)) == media.claude_image(CLAUDE_NEW, None) == 4_784


OPENAI_IMAGES = [
    # Source: the examples of OpenAI's vision guide: 1024 x 1024 high is 4 tiles, 2048 x 4096 is 6, low is the base
    ("gpt-4o", png(1024, 1024), "high", 765),
    ("gpt-4o", png(2048, 4096), "auto", 1105),
    ("gpt-4.1", png(4096, 8192), "low", 85),
    ("gpt-4o", None, "high", 85 + 8 * 170),
    ("gpt-4o-mini", png(1024, 1024), "high", 2833 + 4 * 5667),
    ("gpt-4o-mini", None, "low", 2833),
    ("gpt-5-mini", png(1024, 1024), None, 1024 * 246 // 100 + 1),
    ("gpt-5-mini", png(8000, 8000), None, 1536 * 246 // 100 + 1),
    ("gpt-6", png(1024, 1024), None, 1229),
    ("gpt-6", png(4032, 3024), None, 126 * 95 * 12 // 10 + 1),
    ("gpt-6", None, None, 14_401),
]


@pytest.mark.parametrize(("model", "data", "detail", "tokens"), OPENAI_IMAGES)
def test_openai_images_cost_their_tiles_or_patches(model: str, data: Any, detail: Any, tokens: int) -> None:
    assert media.openai_image(model, data, detail) == tokens


def pdf(pages: int, *, compressed: bool = False) -> str:
    body = b"" if compressed else b"<</Type /Pages /Count %d>>" % pages + b"<</Type/Page /Parent 1 0 R>>" * pages
    return b64encode(b"%PDF-1.7\n" + body + b"x" * 20_000).decode()


def test_documents_cost_their_pages_or_a_bound() -> None:
    page = 3_000 + 1_640
    assert media.document(pdf(3)) == 3 * page
    assert media.document(pdf(500)) == 100 * page
    assert media.document(pdf(3, compressed=True)) == 6 * page  # by its bytes
    assert media.document("%%%") == page
    assert media.document(None) == 50_000


MEDIA: list[tuple[str, Any, int]] = [
    ("anthropic", {"type": "image", "source": {"type": "base64", "data": png(200, 200)}}, 64),
    ("anthropic", {"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/latest"}}, 1_640),
    ("anthropic", {"type": "image", "source": {"type": "file", "file_id": "file_1"}}, 1_640),
    ("anthropic", {"type": "image", "source": "odd"}, 1_640),
    ("anthropic", {"type": "document", "source": {"type": "base64", "data": pdf(2)}}, 9_280),
    ("anthropic", {"type": "document", "source": {"type": "file", "file_id": "f"}}, 50_000),
    ("anthropic", {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url"}}]}, 1_640),
    ("openai_chat", {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(512, 512)}"}}, 255),
    ("openai_chat", {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}}, 85),
    ("openai_chat", {"type": "image_url", "image_url": "https://example.com/a.png"}, 1_445),
    ("openai_chat", {"type": "input_audio", "input_audio": {"data": "A" * 4_000, "format": "wav"}}, 8),
    ("openai_chat", {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{pdf(2)}"}}, 9_280),
    ("openai_chat", {"type": "file", "file": {"file_id": "file-1"}}, 50_000),
    ("openai_responses", {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"}, 85),
    ("openai_responses", {"type": "input_image", "file_id": "file-1"}, 1_445),
    ("openai_responses", {"type": "input_file", "file_data": pdf(2), "filename": "a.pdf"}, 9_280),
    ("openai_responses", {"type": "input_file", "file_url": "https://example.com/a.pdf"}, 50_000),
]


@pytest.mark.parametrize(("dialect", "part", "tokens"), MEDIA)
def test_images_and_documents_are_bounded_and_never_fetched(dialect: str, part: Any, tokens: int) -> None:
    name = "input" if dialect == "openai_responses" else "messages"
    prompt = prompt_of(dialect, **{name: user(part)})
    assert prompt.media_tokens == tokens
    assert not any("base64" in text or len(text) > 1_000 for text in prompt.texts)


ITEMS: list[tuple[dict[str, Any], int]] = [
    ({"type": "reasoning", "summary": [], "encrypted_content": "x" * 400}, 101),
    (
        {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": "https://a.test/x"}},
        1_445,
    ),
    ({"type": "image_generation_call", "id": "1", "result": png(64, 64), "status": "completed"}, 1_445),
    ({"type": "item_reference", "id": "msg_1"}, 5_000),
    ({"type": "message", "role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, 50_000),
]


@pytest.mark.parametrize(("item", "tokens"), ITEMS)
def test_items_that_cannot_be_read_have_a_bound(item: dict[str, Any], tokens: int) -> None:
    assert prompt_of("openai_responses", input=[item]).media_tokens == tokens


def test_what_a_provider_adds_by_itself_is_bounded() -> None:
    hi = [{"role": "user", "content": "hi"}]
    plain = prompt_of("openai_chat", messages=hi).framing_tokens
    assert prompt_of("openai_chat", messages=hi, web_search_options={}).framing_tokens == plain + 1_500
    plain = prompt_of("anthropic", messages=hi).framing_tokens
    assert prompt_of("anthropic", messages=hi, mcp_servers=[{"url": "u"}]).framing_tokens == plain + 1_500


def test_nested_results_end_somewhere() -> None:
    block: Any = {"type": "text", "text": "WORD"}
    for _ in range(40):
        block = {"type": "tool_result", "tool_use_id": "1", "content": [block]}
    assert sum(text.count("WORD") for text in prompt_of("anthropic", messages=user(block)).texts) == 1
    part: Any = "WORD"
    for _ in range(40):
        part = [part]
    assert sum(text.count("WORD") for text in prompt_of("openai_chat", messages=user(part)).texts) == 1
