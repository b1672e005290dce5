"""OpenAPI 3.1 of the billing APIs, made from the same rows that serve them.

Rules
1. Each listener has a document of its own at ``/openapi.json``, of its own routes only: the customers' is public, the
   operators' needs the admin token as everything there does.
2. Nothing is described twice: parameters, bodies and answers are the routes' pydantic models.

Not here: metered calls, which are the providers' own APIs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import Any, Final

import orjson
from pydantic import BaseModel, RootModel, create_model
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from gateway.billing.http.models import ErrorBody, Named, NoQuery
from gateway.billing.http.route import JSON, Call, Raw, Route, Who

PATH: Final = "/openapi.json"
_REF: Final = "#/components/schemas/{model}"
_SECURITY: Final[dict[Who, list[dict[str, list[str]]]]] = {
    Who.PUBLIC: [],
    Who.KEY: [{"key": []}, {"x-api-key": []}],
    Who.SHOPPER: [{"key": []}, {"x-api-key": []}, {}],
    Who.ADMIN: [{"admin": []}],
}
_KEYED: Final = (Who.KEY, Who.SHOPPER)
_SCHEMES: Final = {
    "key": {"type": "http", "scheme": "bearer", "description": "A key: tg_…"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "A key: tg_…"},
    "admin": {"type": "http", "scheme": "bearer", "description": "server.admin_token"},
}
_NAME: Final = {"type": "string", "minLength": 1, "maxLength": 200}
_ACCOUNT: Final = "For a service key: which account this is for, by our id or the app's own name."
_HEADERS: Final = {
    "Tollgate-Account": _ACCOUNT,
    "Tollgate-User": "For whom inside the account; created on first sight.",
    "Tollgate-Team": "For which team inside the account.",
}

Document = dict[str, Any]


def documented(*routes: Route, who: Who) -> tuple[Route, ...]:
    """These routes and the one of their document."""

    async def openapi(_: Call[NoQuery, None]) -> bytes:
        return text(all_of_them)

    own = Route("GET", PATH, who, openapi, Raw(JSON), "This document: OpenAPI 3.1.")
    all_of_them = (*routes, own)
    return all_of_them


@cache
def text(routes: tuple[Route, ...]) -> bytes:
    return orjson.dumps(document(routes), option=orjson.OPT_INDENT_2)


def document(routes: Iterable[Route]) -> Document:
    """The document of these routes."""
    routes = tuple(routes)
    refs, definitions = models_json_schema(_models(routes), ref_template=_REF)
    used = {scheme for route in routes for each in _SECURITY[route.who] for scheme in each}
    paths: Document = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tollgate",
            "version": version("tollgate"),
            "description": "Amounts are plain decimals of their meter, instants RFC 3339 in UTC.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {name: scheme for name, scheme in _SCHEMES.items() if name in used},
        },
    }


def _models(routes: Iterable[Route]) -> list[tuple[type[BaseModel], JsonSchemaMode]]:
    found: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(ErrorBody, "serialization"): None}
    for route in routes:
        if (body := _body_model(route)) is not None:
            found[body, "validation"] = None
        if isinstance(route.answer, type):
            found[route.answer, "serialization"] = None
        found.update({(other, "serialization"): None for other in route.others.values()})
    return list(found)


@cache
def _body_model(route: Route) -> type[BaseModel] | None:
    """The body's model; where a service key may name the account in it, with the two ways to."""
    if not isinstance(route.body, type):
        return None
    if route.who not in _KEYED or issubclass(route.body, RootModel):
        return route.body
    return create_model(route.body.__name__, __base__=(Named, route.body), __module__=route.body.__module__)


def _operation(route: Route, refs: Any) -> Document:
    operation: Document = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "security": _SECURITY[route.who],
        "parameters": _parameters(route),
        "responses": _responses(route, refs),
    }
    body = _body_model(route)
    if body is not None:
        is_needed = any(field.is_required() for field in body.model_fields.values())
        content = {JSON: {"schema": refs[body, "validation"]}}
        operation["requestBody"] = {"required": is_needed, "content": content}
    elif isinstance(route.body, Raw):
        content = {route.body.media or "*/*": {"schema": {"type": "string"}}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _operation_id(route: Route) -> str:
    """``GET /admin/v1/accounts/{account}`` is ``get_admin_v1_accounts_by_account``."""
    path = re.sub(r"\{(\w+)\}", r"by_\1", route.path)
    return f"{route.method.lower()}_{re.sub(r'[^a-z0-9]+', '_', path.lower()).strip('_')}"


def _parameters(route: Route) -> list[Document]:
    found = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    query = route.query.model_json_schema()
    assert "$defs" not in query, f"{route.query.__name__}: a query's fields are simple"
    required = query.get("required", ())
    found += [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in query.get("properties", {}).items()
    ]
    if route.who in _KEYED:
        found += [
            {"name": name, "in": "query", "required": False, "schema": _NAME, "description": _ACCOUNT}
            for name in Named.model_fields
        ]
        found += [_header(name, described) for name, described in _HEADERS.items()]
    if route.idempotent:
        found.append(_header("Idempotency-Key", "The same key again is answered as the first time, and done once."))
    return found


def _header(name: str, described: str) -> Document:
    return {"name": name, "in": "header", "required": False, "schema": _NAME, "description": described}


def _responses(route: Route, refs: Any) -> Document:
    error = {"content": {JSON: {"schema": refs[ErrorBody, "serialization"]}}}
    if isinstance(route.answer, Raw):
        content: Document = {route.answer.media or "*/*": {}}
    else:
        content = {JSON: {"schema": refs[route.answer, "serialization"]}}
    answers: Document = {str(route.status): {"description": "Done.", "content": content}}
    for status, model in route.others.items():
        own = refs[model, "serialization"]
        schema = own if status < 400 else {"anyOf": [own, refs[ErrorBody, "serialization"]]}
        answers[str(status)] = {"description": "No.", "content": {JSON: {"schema": schema}}}
    answers["4XX"] = {"description": "Refused: see docs/errors.md.", **error}
    answers["5XX"] = {"description": "Something is away, or broken.", **error}
    return answers
