"""Step 2: what is asked? The body, judged by its dialect; the model and the feature, by the config."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import ClientPayloadError, web

from gateway.config.model import Config
from gateway.domain.plans import Feature, Model
from gateway.errors import (
    BadRequest,
    BodyTooLarge,
    RequestError,
    RequestTimeout,
    UnknownFeature,
    UnknownModel,
    UnsupportedEncoding,
)
from gateway.providers.adapter import Adapter, Call
from gateway.quota.admission import Facts

BODY_S = 30.0  # how long a body may take to arrive
_METADATA_BYTES_MAX = 2048
_NAME_CHARACTERS_MAX = 256


@dataclass(frozen=True, slots=True)
class Asked:
    """A parsed call with everything the config says of it."""

    adapter: Adapter
    call: Call
    model: Model
    feature: Feature
    facts: Facts


async def parse(config: Config, adapter: Adapter, request: web.BaseRequest) -> Asked:
    """Raises RequestError in all its kinds (bad body, too large, encoding, timeout, feature), UnknownModel."""
    headers = request.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedEncoding("Send the body without Content-Encoding.")
    content_type = request.content_type
    if "Content-Type" in headers and content_type != "application/json" and not content_type.endswith("+json"):
        raise UnsupportedEncoding(f"Send Content-Type: application/json, not {content_type[:60]!r}.")
    call = adapter.parse(await _body(request), headers)
    model = config.catalog.model(call.model)
    if model is None or not any(config.settings.upstreams[name].on for name in model.upstreams):
        raise UnknownModel(f"The model {call.model[:100]!r} is not configured on this gateway.", param="model")
    feature = feature_of(config, headers)
    label = call.model if call.model in model.ids else model.match
    facts = Facts(
        route=adapter.name,
        model=label,
        job=_name(headers, "Tollgate-Job"),
        job_type=_name(headers, "Tollgate-Job-Type"),
        metadata=_metadata(headers),
    )
    return Asked(adapter, call, model, feature, facts)


async def _body(request: web.BaseRequest) -> bytes:
    """Raises BodyTooLarge, RequestTimeout, RequestError."""
    try:
        if request.content.is_eof():  # it came with the headers
            return await request.read()
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise BodyTooLarge from error
    except TimeoutError as error:
        raise RequestTimeout from error
    except (OSError, web.RequestPayloadError, ClientPayloadError) as error:
        raise RequestError("The request broke off before its body was complete.") from error


def feature_of(config: Config, headers: Mapping[str, str]) -> Feature:
    """Raises UnknownFeature."""
    name = headers.get("Tollgate-Feature") or config.catalog.default_feature
    feature = config.catalog.features.get(name)
    if feature is None:
        raise UnknownFeature
    return feature


def _name(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name)
    if value is not None and len(value) > _NAME_CHARACTERS_MAX:
        raise BadRequest("invalid_header", f"{name} takes at most {_NAME_CHARACTERS_MAX} characters.", param=name)
    return value


def _metadata(headers: Mapping[str, str]) -> dict[str, Any]:
    """Tollgate-Metadata: a JSON object of at most 2 KB."""
    text = headers.get("Tollgate-Metadata")
    if text is None:
        return {}
    if len(text) > _METADATA_BYTES_MAX:
        raise BadRequest("invalid_header", "Tollgate-Metadata takes at most 2 KB of JSON.", param="Tollgate-Metadata")
    try:
        value = orjson.loads(text.encode("utf-8", "surrogateescape"))
    except orjson.JSONDecodeError as error:
        raise BadRequest("invalid_header", "Tollgate-Metadata is not valid JSON.", param="Tollgate-Metadata") from error
    if not isinstance(value, dict):
        raise BadRequest("invalid_header", "Tollgate-Metadata must be a JSON object.", param="Tollgate-Metadata")
    return value
