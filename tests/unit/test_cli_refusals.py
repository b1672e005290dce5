"""What the command line does not take: one line, the right exit code, and nothing changed."""

from __future__ import annotations

import contextlib
import io
import sqlite3
import sys
from pathlib import Path

import pytest

from gateway.cli import place
from gateway.cli.frame import EX_CONFIG, EX_UNAVAILABLE, EX_USAGE
from gateway.embedded import DataLock
from tests.support.commands import CONFIG, Cli, installation
from tests.support.processes import free_port

LONG = "x" * 300
ACCOUNT = "{account}"  # replaced by a real account's id

# (what is typed, what the message must say)
USAGE = [
    # commands and options
    ("acounts", "Did you mean 'accounts'"),
    ("accounts lst", "Did you mean 'list'"),
    ("accounts list --plam pro", "Possible options: --limit, --plan"),
    ("accounts show", "Missing argument 'ACCOUNT'"),
    ("grant {account}", "Missing argument 'AMOUNT'"),
    ("accounts show a b", "unexpected extra argument(s) (b)"),
    # who
    ("accounts show nobody", "There is no account nobody."),
    ("balance nobody@example.org", "There is no account"),
    ("balance twin@example.org", "Several accounts have the e-mail"),
    ("users show {account} nobody", "There is no user nobody"),
    ("teams show {account} nobody", "There is no team nobody"),
    ("accounts show a\x00b", "There is no account a?b."),
    ("keys show nonsense", "There is no key nonsense."),
    ("keys revoke 00000000-0000-7000-8000-000000000000 --yes", "There is no key"),
    ("keys rotate tg_0123456789abcdefghijklmnopqrstuvwxyz", "There is no key tg_..."),
    # names
    ("accounts create ''", "needs a name"),
    (f"accounts create {LONG}", "at most 200"),
    ("accounts create a\x1bb", "printable"),
    ("accounts create New --external-id org-1", "already an account with the external id org-1"),
    ("accounts create New --plan platinum", "no plan platinum"),
    ("accounts set {account}", "Say what to change"),
    ("teams create {account} ''", "name"),
    # times
    ("usage {account} --month 2026-13", "--month: expected a month such as 2026-11, found '2026-13'"),
    # amounts
    ("grant {account} abc --wallet tokens", "amount: expected an amount of tokens"),
    ("grant {account} 1e3 --wallet tokens", "amount: expected"),
    ("grant {account} NaN --wallet tokens", "amount: expected"),
    ("grant {account} 0.0001 --wallet tokens", "at most 3 decimals"),
    ("grant {account} 9007199254740993 --wallet tokens", "at most"),
    ("grant {account} 0 --wallet tokens", "more than 0"),
    ("grant {account} -5 --wallet tokens", "No such option: -5"),
    ("adjust {account} 0 --wallet tokens", "more than 0"),
    ("adjust {account} --5 --wallet tokens", "amount: expected"),
    ("grant {account} 5", "Name the wallet: tokens, credits."),
    ("grant {account} 5 --wallet gold", "no wallet gold; there is: tokens, credits"),
    # times
    ("grant {account} 5 --wallet tokens --expires 30", "expected a time such as"),
    ("grant {account} 5 --wallet tokens --expires 2099-02-30", "expected a time such as"),
    ("grant {account} 5 --wallet tokens --expires 2099-01-01T00:00:00", "expected a time such as"),
    ("grant {account} 5 --wallet tokens --expires 9999-12-31", "expected a time such as"),
    ("grant {account} 5 --wallet tokens --expires 2001-01-01", "must be in the future"),
    ("keys create {account} --expires 2001-01-01", "must be in the future"),
    ("subscribe {account} pro --ends-at 2001-01-01", "must be in the future"),
    ("subscription extend {account} --ends-at 2001-01-01", "must be in the future"),
    ("keys rotate x --overlap 5", "--overlap: expected a duration"),
    # plans and terms
    ("subscribe {account} platinum", "There is no plan platinum; there is: trial, pro, custom, endless."),
    ("subscribe {account} custom", "name the amount when subscribing"),
    ("subscribe {account} custom --allowance tokens", "expected WALLET=AMOUNT"),
    ("subscribe {account} custom --allowance tokens=1 --allowance tokens=2", "expected WALLET=AMOUNT"),
    ("subscribe {account} custom --allowance gold=1", "no wallet gold"),
    ("subscribe {account} custom --allowance tokens=-1", "0 or more"),
    ("subscribe {account} pro --price -1", "0 or more"),
    ("subscribe {account} pro --price cheap", "a price such as"),
    ("plans show platinum", "There is no plan platinum"),
    # keys
    ("keys create", "Name an account, or say --service"),
    ("keys create {account} --service", "one of the two"),
    ("keys create --service --team core", "has no team"),
    ("keys create {account} --team nobody", "There is no team nobody"),
    ("keys list", "Name an account, or say --service"),
    # budgets
    ("budgets set account {account} tokens 5", "of a team, a user or a key"),
    ("budgets set team nobody tokens 5", "There is no team nobody in any account"),
    ("budgets set team nobody gold 5", "no wallet gold"),
    ("budgets set team nobody tokens 5 --period 0s", "period: expected"),
    ("budgets remove {account} 99", "no budget 99"),
    ("budgets remove {account} x", "a valid integer"),
    # lists
    ("usage {account} --limit 0", "greater than or equal to 1"),
    ("usage {account} --limit -1", "greater than or equal to 1"),
    ("usage {account} --limit 1000000000", "less than or equal to 1000"),
    ("usage {account} --after ../etc", "cursor"),
    ("transactions {account} --after 1%", "cursor"),
    ("usage {account} --by balance", "can be summed by"),
    ("usage {account} --from yesterday", "expected a time such as"),
    # serving
    ("serve --workers 0", "greater than or equal to 1"),
    ("upstream --listen nowhere", "--listen"),
]


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return installation(tmp_path, capsys)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one installation for all that is refused: it stays as it is."""
    return tmp_path_factory.mktemp("prepared")


def split(line: str, account: str) -> list[str]:
    return ["" if word == "''" else word.replace(ACCOUNT, account) for word in line.split(" ")]


@pytest.mark.parametrize(("line", "message"), USAGE, ids=[line.replace("\x00", "0")[:60] for line, _ in USAGE])
def test_what_cannot_be_done_is_said_in_a_line_and_exits_2(
    prepared: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    cli = installation(prepared, capsys)
    if not cli.data.exists():
        cli.account("First", "--external-id", "org-1")
        cli.account("Twin", "--email", "twin@example.org")
        cli.account("Other twin", "--email", "Twin@example.org")
    before = _rows(cli)
    result = cli(*split(line, before[0][0][0]))
    assert (result.code, result.out) == (EX_USAGE, "")
    assert message in result.err
    assert "Traceback" not in result.err and len(result.err.splitlines()) == 1
    assert _rows(cli) == before


def _rows(cli: Cli) -> tuple[list[tuple[str, ...]], ...]:
    """All that a command could have changed."""
    tables = (
        "accounts",
        "subscriptions",
        "grants",
        "ledger",
        "keys",
        "budgets",
        "teams",
        "users",
        "pushes",
        "audit_log",
    )
    with contextlib.closing(sqlite3.connect(cli.data / "tollgate.db")) as database:
        return tuple(database.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables)


def test_a_config_that_is_missing_or_wrong_exits_78(cli: Cli, tmp_path: Path) -> None:
    missing = cli("accounts", "list", "--config", str(tmp_path / "none.yaml"))
    assert missing.code == EX_CONFIG and missing.err.startswith(str(tmp_path / "none.yaml"))
    cli.config.write_text(CONFIG.replace("version: 1", "version: 7"))
    wrong = cli("accounts", "list")
    assert (wrong.code, wrong.out) == (EX_CONFIG, "")
    assert wrong.err.startswith(f"{cli.config}:1: version: ")
    cli.config.unlink()
    gone = cli("balance", "x")
    assert gone.code == EX_CONFIG and gone.err.startswith(str(cli.config))


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.7:9090"])
def test_the_operators_listener_is_not_opened_to_others_without_a_token(address: str, cli: Cli) -> None:
    """Also when the address comes from the command line: the config's own check has not seen it."""
    refused = cli("serve", "--admin", address)
    assert refused.code == EX_CONFIG and "server.admin_token is needed" in refused.err


def test_a_data_folder_that_is_none_exits_78(cli: Cli) -> None:
    cli.data.write_text("a file")
    result = cli("accounts", "list")
    assert result.code == EX_CONFIG and "data folder" in result.err


def test_a_busy_data_folder_exits_69_and_nothing_was_written(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    account = cli.account()
    monkeypatch.setattr(place, "LOCK_WAIT_S", 0.05)
    lock = DataLock(cli.data)
    lock.acquire()
    try:
        result = cli("grant", account, "5", "--wallet", "tokens")
        assert (result.code, result.out) == (EX_UNAVAILABLE, "") and "in use" in result.err
        assert len(cli.ok("transactions", account)) == 1
    finally:
        lock.release()


def test_redis_away_stops_reports_but_no_change(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_REDIS", f"redis://:secret@127.0.0.1:{free_port()}/0")
    cli.config.write_text(CONFIG.replace("redis: embedded", 'redis: "${TEST_REDIS}"'))
    account = cli.account()
    changed = cli("grant", account, "5", "--wallet", "tokens")
    assert changed.code == 0 and "as soon as it is back" in changed.err
    for command in (("balance", account), ("audit",), ("rebuild",), ("doctor",)):
        result = cli(*command)
        assert result.code == EX_UNAVAILABLE, command
        assert "secret" not in result.out + result.err and "Traceback" not in result.err


def test_the_database_away_exits_69(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_DATABASE", f"postgresql://tollgate:secret@127.0.0.1:{free_port()}/tollgate")
    monkeypatch.setenv("TEST_SECRET", "0123456789abcdef" * 4)
    text = CONFIG.replace("database: embedded", 'database: "${TEST_DATABASE}"')
    cli.config.write_text(text.replace("server: {", 'server: {secret: "${TEST_SECRET}", '))
    for command in ("accounts list", "audit", "migrate", "doctor"):
        result = cli(*command.split())
        assert result.code == EX_UNAVAILABLE, command
        assert "secret" not in result.out + result.err and "Traceback" not in result.err


def test_help_of_every_command_is_one_page_of_its_own(cli: Cli) -> None:
    for command in ("", "serve", "accounts", "accounts create", "keys create", "subscribe", "doctor", "upstream"):
        result = cli(*command.split(), "--help")
        assert result.code == 0 and f"tollgate {command}".strip() in result.out


def test_a_group_without_a_command_shows_its_help_and_exits_2(cli: Cli) -> None:
    result = cli("accounts")
    assert result.code == EX_USAGE and "Usage: tollgate accounts" in result.out + result.err


def test_the_version_is_printed(cli: Cli) -> None:
    assert cli("--version").out.startswith("tollgate ")


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("YES\n", 0), ("n\n", 2), ("\n", 2), ("", 2)])
def test_what_cannot_be_undone_is_asked_at_a_terminal(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, typed: str, code: int
) -> None:
    key = cli.ok("keys", "create", cli.account())["id"]
    terminal = io.StringIO(typed)
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    result = cli("keys", "revoke", key)
    assert result.code == code and "[y/N]" in result.err
    assert cli.ok("keys", "show", key)["status"] == ("revoked" if code == 0 else "active")
