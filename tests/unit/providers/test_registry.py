"""What is served is what is metered: one adapter per route, and somebody to spell the errors of all others."""

from __future__ import annotations

from multidict import CIMultiDict

from gateway.providers.registry import ADAPTERS, ANTHROPIC, OPENAI_CHAT, error_adapter


def test_each_route_has_the_adapter_that_says_so() -> None:
    assert {"/v1/messages", "/v1/chat/completions", "/v1/responses"} <= set(ADAPTERS)
    assert not {"/v1/completions", "/v1/embeddings"} & set(ADAPTERS)
    for route, adapter in ADAPTERS.items():
        assert adapter.route == route
        assert adapter.dialect in ("anthropic", "openai")
    assert len({adapter.name for adapter in ADAPTERS.values()}) == len(ADAPTERS)


def test_an_upstream_path_follows_the_upstreams_url() -> None:
    """Anthropic's url is the host, OpenAI's ends in /v1: as in each SDK's base_url."""
    for adapter in ADAPTERS.values():
        prefix = "" if adapter.dialect == "anthropic" else "/v1"
        assert prefix + adapter.upstream_path == adapter.route


def test_errors_elsewhere_are_spelled_for_the_sdk_that_asks() -> None:
    assert error_adapter(CIMultiDict({"Anthropic-Version": "2026-10-21"})) is ANTHROPIC
    assert error_adapter(CIMultiDict({"Authorization": "Bearer x"})) is OPENAI_CHAT
