"""The command line on a PostgreSQL and a Redis of their own: what differs from the embedded ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support import stores
from tests.support.commands import CONFIG, Cli, installation


@pytest.fixture
def cli(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    postgres_url: str,
    valkey_url: str,
) -> Cli:
    monkeypatch.setenv("TEST_DATABASE", postgres_url)
    monkeypatch.setenv("TEST_REDIS", valkey_url)
    monkeypatch.setenv("TEST_SECRET", "0123456789abcdef" * 4)
    text = CONFIG.replace(
        "{redis: embedded, database: embedded}", '{redis: "${TEST_REDIS}", database: "${TEST_DATABASE}"}'
    )
    return installation(tmp_path, capsys, text.replace("server: {", 'server: {secret: "${TEST_SECRET}", '))


def test_a_database_is_migrated_by_command_only(cli: Cli) -> None:
    refused = cli("accounts", "list")
    assert refused.code == 78 and "run 'tollgate migrate'" in refused.err
    assert cli("doctor").code == 1
    assert cli.ok("migrate")["database"] == "postgresql"
    assert cli.ok("accounts", "list") == []


def test_commands_do_the_same_on_postgresql(cli: Cli, tmp_path: Path) -> None:
    cli.ok("migrate")
    account = cli.account("Acme", "--external-id", "org-1", "--email", "a@acme.org")
    key = cli.ok("keys", "create", "org-1")
    cli.ok("subscribe", "a@acme.org", "pro")
    cli.ok("budgets", "set", "key", key["id"], "tokens", "10")
    cli.ok("adjust", account, "-100.5", "--wallet", "tokens")
    wallet = cli.ok("balance", account)["wallets"][0]
    assert wallet["available"] == "499899.5"
    assert cli.ok("keys", "revoke", key["id"], "--yes")["status"] == "revoked"
    file = tmp_path / "more.csv"
    file.write_text("name,external_id\nBeta,org-2\nGamma,org-1\n")
    assert cli("accounts", "import", str(file)).code == 2
    file.write_text("name,external_id\nBeta,org-2\nGamma,org-3\n")
    assert len(cli.ok("accounts", "import", str(file))) == 2
    assert cli.ok("rebuild")["accounts"] == 3
    audit = cli.ok("audit")
    assert (audit["accounts"], audit["in_redis"], audit["difference"]) == (3, 3, 0)


def test_the_doctor_names_the_servers_but_not_their_passwords(cli: Cli) -> None:
    cli.ok("migrate")
    found = {each["check"]: each for each in cli("doctor", "--json").json()}
    assert found["database"]["found"].startswith("postgresql://") and "PostgreSQL 18" in found["database"]["found"]
    assert found["database clock"]["result"] == found["redis clock"]["result"] == "ok"
    assert found["redis persistence"]["result"] == "warn"


def test_the_audit_sees_what_redis_has_and_sql_has_not(cli: Cli, postgres_url: str) -> None:
    """A difference that is only in Redis: the account is loaded there, and SQL is changed behind its back."""
    cli.ok("migrate")
    account = cli.account()
    cli.ok("balance", account)
    _execute(postgres_url, cli, "UPDATE grants SET amount = amount - 1000")
    found = cli("audit", "--json")
    assert found.code == 1 and '"what": "Redis: amount of grant 1"' in found.out


def _execute(url: str, cli: Cli, statement: str) -> None:
    async def run() -> None:
        async with stores.opened(url, cli.data) as store, store.database.write() as connection:
            await connection.exec_driver_sql(statement)

    asyncio.run(run())
