"""Step 2: what is asked? The body, judged by its dialect; the model and the feature, by the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from aiohttp import web

from gateway.config.model import Config, Upstream
from gateway.domain.plans import Feature, Model
from gateway.edge import body_at_hand, check_media, read_body
from gateway.errors import BadRequest, UnknownFeature, UnknownModel
from gateway.providers.adapter import Adapter, Call
from gateway.proxy.laps import Laps
from gateway.quota.admission import Facts
from gateway.quota.credentials import named
from limits.values import dataclass

_METADATA_BYTES_MAX = 2048
_NAME_CHARACTERS_MAX = 256
_FACTS = ("Tollgate-Job", "Tollgate-Job-Type", "Tollgate-Metadata")


@dataclass(frozen=True, slots=True)
class Asked:
    """A parsed call with everything the config says of it. A reload does not change it under way."""

    config: Config
    adapter: Adapter
    call: Call
    model: Model
    feature: Feature
    facts: Facts
    upstreams: Sequence[Upstream]  # that may serve it, in the config's order


async def parse(config: Config, adapter: Adapter, request: web.BaseRequest, laps: Laps, *, body_s: float) -> Asked:
    """``body_s``: how long the body may take to arrive; that time is the client's.

    Raises RequestError in all its kinds (bad body, too large, encoding, timeout, feature), UnknownModel.
    """
    headers = request.headers
    check_media(request, "application/json")
    bytes_max = config.settings.body_max_bytes
    body = body_at_hand(request, bytes_max=bytes_max)
    if body is None:
        body = await read_body(request, bytes_max=bytes_max, within_s=body_s)
        laps.restart()
    return asked_of(config, adapter, body, headers)


def asked_of(config: Config, adapter: Adapter, body: bytes, headers: Mapping[str, str]) -> Asked:
    """What this body asks for under these headers. Raises RequestError (body, header, feature), UnknownModel."""
    call = adapter.parse(body, headers)
    served = config.served(call.model, adapter.dialect)
    if served is None:
        raise _not_configured(call.model)
    if not served.upstreams:
        raise UnknownModel(f"The model {call.model[:100]!r} is not served on {adapter.route}.", param="model")
    feature = feature_named(config, headers.get("Tollgate-Feature"), param="Tollgate-Feature")
    return Asked(
        config, adapter, call, served.model, feature, _facts(adapter.name, served.label, headers), served.upstreams
    )


def _not_configured(name: str) -> UnknownModel:
    return UnknownModel(f"The model {name[:100]!r} is not configured on this gateway.", param="model")


def model_of(config: Config, name: str) -> Model:
    """The config's rule for a model's name. Raises UnknownModel, also when none of its upstreams is on."""
    model = config.model(name)
    if model is None:
        raise _not_configured(name)
    return model


def feature_named(config: Config, name: str | None, *, param: str) -> Feature:
    """The feature of this name; without one the default. Raises UnknownFeature."""
    feature = config.catalog.features.get(config.catalog.default_feature if name is None else name)
    if feature is None:
        raise UnknownFeature(param=param)
    return feature


def _facts(route: str, model: str, headers: Mapping[str, str]) -> Facts:
    """What the record says besides numbers: the job and the metadata as the request tells them. Raises BadRequest."""
    if headers.keys().isdisjoint(_FACTS):
        return Facts(route, model)
    return Facts(
        route,
        model,
        named(headers, "Tollgate-Job", _NAME_CHARACTERS_MAX),
        named(headers, "Tollgate-Job-Type", _NAME_CHARACTERS_MAX),
        _metadata(headers),
    )


def _metadata(headers: Mapping[str, str]) -> dict[str, Any]:
    """Tollgate-Metadata: a JSON object of at most 2 KB."""
    text = headers.get("Tollgate-Metadata")
    if text is None:
        return {}
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > _METADATA_BYTES_MAX:
        raise BadRequest("invalid_header", "Tollgate-Metadata takes at most 2 KB of JSON.", param="Tollgate-Metadata")
    try:
        value = orjson.loads(data)
        orjson.dumps(value)  # what cannot be written again (too deep) cannot be recorded
    except (orjson.JSONDecodeError, TypeError) as error:
        raise BadRequest("invalid_header", "Tollgate-Metadata is not valid JSON.", param="Tollgate-Metadata") from error
    if not isinstance(value, dict):
        raise BadRequest("invalid_header", "Tollgate-Metadata must be a JSON object.", param="Tollgate-Metadata")
    return value
