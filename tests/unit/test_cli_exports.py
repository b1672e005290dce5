"""Usage and transactions out of the command line: as CSV on stdout, or of all accounts as files."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from pathlib import Path

import pytest

from gateway.domain.usage import Usage
from tests.support import stores
from tests.support.commands import Cli, installation
from tests.support.stores import charge


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return installation(tmp_path, capsys)


def used(cli: Cli, account: str, *amounts: int) -> None:
    """Charges of so many steps each, a second apart, the last one now."""
    now_ms = time.time_ns() // 1_000_000

    async def write() -> None:
        async with stores.opened("embedded", cli.data) as store:
            await store.writer.commit(
                [
                    charge(account, (1, steps), at_ms=now_ms - 1000 * index, usage=Usage(input=1), job=f"=j{index}")
                    for index, steps in enumerate(reversed(amounts))
                ]
            )

    asyncio.run(write())


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_usage_is_written_as_csv_whole_and_filtered(cli: Cli) -> None:
    account = cli.account()
    used(cli, account, 1_000, 2_000, 3_000)
    found = rows(cli("usage", account, "--csv", "--limit", "1").out)
    assert [(row["charged"], row["job"]) for row in found] == [("3", "'=j0"), ("2", "'=j1"), ("1", "'=j2")]
    assert [row["charged"] for row in rows(cli("usage", account, "--csv", "--job", "=j1").out)] == ["2"]
    assert rows(cli("usage", account, "--csv", "--to", "2020-01-01").out) == []
    assert [row["charged"] for row in cli.ok("usage", account, "--feature", "general", "--by", "day")["records"]] == [
        "3",
        "2",
        "1",
    ]


def test_transactions_are_listed_by_time_and_written_as_csv(cli: Cli) -> None:
    account = cli.account()
    used(cli, account, 1_000)
    assert [row["amount"] for row in rows(cli("transactions", account, "--csv").out)] == ["-1", "6000"]
    assert len(cli.ok("transactions", account, "--from", "2020-01-01")) == 2
    assert cli.ok("transactions", account, "--to", "2020-01-01") == []
    assert cli("transactions", account, "--from", "soon").code == 2


def test_a_balance_tells_lifetime_use_and_a_forecast_when_it_ends(cli: Cli) -> None:
    account = cli.account()
    used(cli, account, 3_000_000)
    wallet = cli.ok("balance", account)["wallets"][0]
    assert (wallet["available"], wallet["lifetime_used"], wallet["period_used"]) == ("3000", "3000", "3000")
    outlook = cli.ok("forecast", account)["wallets"][0]
    assert (outlook["per_day"], outlook["used_recently"]) == ("3000", "3000") and outlook["runs_out_at"]


@pytest.mark.parametrize("written_as", ["csv", "jsonl"])
def test_an_export_has_every_account_and_no_half_file(cli: Cli, tmp_path: Path, written_as: str) -> None:
    first, second = cli.account("One"), cli.account("Two")
    used(cli, first, 1_000, 2_000)
    used(cli, second, 5_000)
    folder = tmp_path / "out" / "here"
    done = cli.ok("export", str(folder), "--format", written_as)
    assert (done["accounts"], done["usage"], done["transactions"]) == (2, 3, 4)
    assert sorted(path.name for path in folder.iterdir()) == [f"transactions.{written_as}", f"usage.{written_as}"]
    texts = {path.stem: path.read_text() for path in folder.iterdir()}
    read = {
        name: rows(text) if written_as == "csv" else [json.loads(line) for line in text.splitlines()]
        for name, text in texts.items()
    }
    assert {(row["account"], row["charged"]) for row in read["usage"]} == {
        (first, "2"),
        (first, "1"),
        (second, "5"),
    }
    assert [row["amount"] for row in read["transactions"] if row["account"] == first] == ["-3", "6000"]
