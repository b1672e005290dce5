"""The documents: valid OpenAPI 3.1, true to the tables, and held against a running server by schemathesis.

Rules
1. ``tollgate serve`` is a process of its own here, with a real Redis and database; nothing is stubbed.
2. A few cases per operation in every run; ``make fuzz`` asks for thousands.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import schemathesis

from gateway.billing.http import openapi, tables
from gateway.billing.http.route import Route
from tests.support import api_docs
from tests.support.apis import ADMIN_TOKEN, NO_MODELS, PACKAGES, SECRET, with_secrets
from tests.support.fuzz import fuzz
from tests.support.gateways import Served, config_text, served


@dataclass(frozen=True, slots=True)
class Fuzzable:
    """A server, its credentials by kind, and the names of what is in it."""

    server: Served
    credentials: dict[str, str]
    names: dict[str, list[str]]


@pytest.fixture(scope="module")
def fuzzable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzable]:
    folder = tmp_path_factory.mktemp("fuzz")
    env = {"TEST_ADMIN_TOKEN": ADMIN_TOKEN, "TEST_SECRET": SECRET}
    with served(folder, with_secrets(f"{config_text(NO_MODELS)}\n{PACKAGES}\n"), env=env) as server:
        own = asked(server, "accounts", {"name": "Customer", "plan": "pro", "external_id": "customer"})["id"]
        key = asked(server, f"accounts/{own}/keys", {"name": "fuzzed"})
        service = asked(server, "keys", {"name": "backend"})
        account = asked(server, "accounts", {"name": "Operated", "plan": "pro", "external_id": "operated"})["id"]
        at = f"accounts/{account}"
        spare = asked(server, f"{at}/keys", {"name": "spare"})
        team = asked(server, f"{at}/teams", {"name": "Crew", "external_id": "crew"})
        user = asked(server, f"{at}/users", {"name": "Ann", "external_id": "ann"})
        gift = asked(server, f"{at}/packages", {"package": "small"})
        names = {
            "own": [own],
            "account": [account, "operated"],
            "key": [spare["id"]],
            "team": [team["id"], "crew"],
            "user": [user["id"], "ann"],
            "id": [user["id"], team["id"], spare["id"]],
            "payment": [gift["payment"]],
            "plan": ["pro", "trial"],
            "number": ["1", "2"],
            "wallet": ["tokens", "uses"],
            "meter": ["tokens"],
            "package": ["small"],
            "feature": ["job", "general"],
            "featureUsed": ["job"],
            "model": ["gpt-5"],
        }
        yield Fuzzable(server, {"owner": key["key"], "service": service["key"], "admin": ADMIN_TOKEN}, names)


def asked(server: Served, path: str, body: dict[str, Any]) -> Any:
    """A POST to the admin API."""
    connection = http.client.HTTPConnection(urlsplit(server.admin_url).netloc, timeout=30)
    try:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"}
        connection.request("POST", f"/admin/v1/{path}", json.dumps(body), headers)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        assert answer.status < 300, content
        return content
    finally:
        connection.close()


@pytest.mark.timeout(3_000)
@pytest.mark.parametrize("who", ["owner", "service", "admin"])
def test_no_invented_request_breaks_the_apis_or_their_documents(who: str, fuzzable: Fuzzable, tmp_path: Path) -> None:
    url = fuzzable.server.admin_url if who == "admin" else fuzzable.server.url
    found = fuzz(f"{url}/openapi.json", tmp_path, credential=fuzzable.credentials[who], names=fuzzable.names)
    print(f"{who}: {found.cases}")  # what `make fuzz` shows
    assert found.exit_code == 0, found.output[-20_000:]


@pytest.mark.parametrize("routes", [tables.CUSTOMERS, tables.OPERATORS], ids=["customers", "operators"])
def test_the_document_is_valid_and_names_every_route(routes: tuple[Route, ...]) -> None:
    document = openapi.document(routes)
    schemathesis.openapi.from_dict(document).validate()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, route.path) for route in routes}


def test_the_docs_have_the_tables_as_they_are() -> None:
    """``python -m tests.support.api_docs`` renews them."""
    text = api_docs.FILE.read_text(encoding="utf-8")
    assert text == api_docs.renewed(text)
