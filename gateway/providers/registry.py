"""Which dialect is spoken on which route. What is not here is not metered, and so not served."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.providers.adapter import Adapter
from gateway.providers.anthropic import AnthropicMessages
from gateway.providers.anthropic_count import AnthropicCount
from gateway.providers.openai_chat import OpenAIChat
from gateway.providers.openai_responses import OpenAIResponses

ANTHROPIC = AnthropicMessages()
ANTHROPIC_COUNT = AnthropicCount()
OPENAI_CHAT = OpenAIChat()
OPENAI_RESPONSES = OpenAIResponses()

_ALL: tuple[Adapter, ...] = (ANTHROPIC, ANTHROPIC_COUNT, OPENAI_CHAT, OPENAI_RESPONSES)
ADAPTERS: Mapping[str, Adapter] = {adapter.route: adapter for adapter in _ALL}


def error_adapter(headers: Mapping[str, str]) -> Adapter:
    """Who spells an error on a route of no dialect: ``anthropic-version`` tells Anthropic's SDK from the others.

    ``headers`` must find names in any case, as aiohttp's do.
    """
    return ANTHROPIC if "anthropic-version" in headers else OPENAI_CHAT
