"""Commands beside a running server: what they change counts on the very next call, and what calls cost they show."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.commands import Cli
from tests.support.gateways import Served, served
from tests.support.processes import wait_until

BODY = {"model": "claude-haiku-4-5", "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("server"), arguments=("--demo", "--workers", "2")) as running:
        yield running


@pytest.fixture
def cli(server: Served, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(server.config, server.data, capsys)


def call(server: Served, key: str, **headers: str) -> tuple[int, Any]:
    """One message: (status, answer)."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    common = {"x-api-key": key, "anthropic-version": "2023-06-01", "content-type": "application/json"}
    try:
        connection.request("POST", "/v1/messages", json.dumps(BODY), {**common, **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def spent(answer: Any) -> int:
    return int(answer["usage"]["input_tokens"]) + int(answer["usage"]["output_tokens"])


def test_a_change_by_command_counts_on_the_next_call(server: Served, cli: Cli) -> None:
    account = cli.account("Acme", "--external-id", "next-call")
    key = cli.ok("keys", "create", account)

    def refused(status: int, kind: str) -> None:
        seen, answer = call(server, key["key"])
        assert (seen, answer["error"]["type"]) == (status, kind), answer

    def served_again() -> None:
        seen, answer = call(server, key["key"])
        assert seen == 200, answer

    served_again()
    cli.ok("adjust", account, "-1000000")
    refused(429, "rate_limit_error")
    cli.ok("grant", account, "5000", "--reason", "goodwill")
    served_again()

    cli.ok("budgets", "set", "key", key["id"], "tokens", "0")
    refused(429, "rate_limit_error")
    cli.ok("budgets", "remove", account, "1")
    served_again()

    new = cli.ok("keys", "rotate", key["id"], "--overlap", "1h")
    served_again()
    cli.ok("keys", "revoke", key["id"], "--yes")
    refused(401, "authentication_error")

    key = new
    served_again()
    cli.ok("accounts", "suspend", account)
    refused(403, "permission_error")
    cli.ok("accounts", "resume", account)
    wait_until(lambda: call(server, key["key"])[0] == 200, what="the account calls again")


def test_what_calls_cost_is_told_alike_by_usage_balance_transactions_and_audit(server: Served, cli: Cli) -> None:
    account = cli.account("Spender", "--plan", "pro")
    key = cli.ok("keys", "create", account)["key"]
    total = sum(spent(call(server, key)[1]) for _ in range(5))

    def at_rest() -> bool:
        wallet = cli.ok("balance", account)["wallets"][0]
        return len(cli.ok("usage", account)["records"]) == 5 and wallet["held"] == "0"

    wait_until(at_rest, what="five usage records and no hold", within_s=30)
    (row,) = cli.ok("usage", account)["totals"]
    assert (row["calls"], Decimal(row["charged"]), row["total_tokens"]) == (5, total, total)
    wallet = cli.ok("balance", account)["wallets"][0]
    assert (Decimal(wallet["used"]), Decimal(wallet["available"])) == (total, 500_000 - total)
    assert sum(Decimal(row["amount"]) for row in cli.ok("transactions", account)) == 500_000 - total
    audit = cli.ok("audit")
    assert audit["difference"] == 0 and audit["in_redis"] >= 1


def test_a_rebuild_beside_calls_loses_nothing(server: Served, cli: Cli) -> None:
    account = cli.account("Rebuilt", "--plan", "pro")
    key = cli.ok("keys", "create", account)["key"]
    before = spent(call(server, key)[1])
    assert cli.ok("rebuild")["accounts"] >= 1
    total = before + spent(call(server, key)[1])

    def charged() -> bool:
        return Decimal(cli.ok("balance", account)["wallets"][0]["used"]) == total

    wait_until(charged, what="both calls are charged", within_s=30)
    assert cli.ok("audit", account)["difference"] == 0


def test_a_service_key_acts_for_accounts_by_their_external_ids(server: Served, cli: Cli) -> None:
    cli.account("Tenant", "--external-id", "tenant-7")
    key = cli.ok("keys", "create", "--service")["key"]
    assert call(server, key, **{"Tollgate-Account": "tenant-7"})[0] == 200
    assert call(server, key, **{"Tollgate-Account": "tenant-8"})[0] == 404
