"""``tollgate explain`` says what a call would meet, on a real SQLite and a real Valkey."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import Cli, installation
from tests.support.configs import edited

CONFIG = edited(
    "  pro: {label: Pro, price: 30, period: 30d, allowance: {tokens: 500000}}\n",
    "  pro: {label: Pro, price: 30, period: 30d, allowance: {tokens: 500000}, limits: {key: {concurrent: 2}}}\n"
    "  dark: {label: Dark, price: 1, period: 30d, allowance: {}, shadow: true}\n",
)


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return installation(tmp_path, capsys, CONFIG)


def test_a_call_that_fits_is_admitted_and_takes_nothing(cli: Cli) -> None:
    account = cli.account("Acme", "--plan", "pro")
    for _ in range(2):
        seen = cli.ok("explain", account, "--model", "claude-a", "--input-tokens", "1000", "--output-tokens", "500")
        assert (seen["decision"], seen["status"], seen["reason"]) == ("admitted", 200, None)
        wallet, concurrency = seen["limits"]
        assert (wallet["limit"], wallet["used"], wallet["held"]) == ("500000", "0", "0")
        assert (wallet["needed"], wallet["available"], wallet["fits"]) == ("1500", "500000", True)
        assert (concurrency["limit_of"], concurrency["limit"], concurrency["held"]) == ("concurrency", "2", "0")
    assert cli.ok("balance", account)["holds_open"] == 0


def test_a_call_that_does_not_fit_is_told_as_the_call_would_be(cli: Cli) -> None:
    account = cli.account()
    result = cli("explain", account, "--model", "claude-a", "--input-tokens", "9000", "--output-tokens", "1")
    assert result.code == 0 and result.out.startswith("refused: call_too_large (429)\n")
    assert "needs    9001 of tokens" in result.out


def test_a_whole_request_is_counted_as_a_call_would_be(cli: Cli, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text(
        json.dumps({"model": "claude-a", "max_tokens": 99, "messages": [{"role": "user", "content": "hi"}]})
    )
    seen = cli.ok("explain", cli.account(), "--request", str(body), "--route", "/v1/messages")
    assert seen["tokens"]["counted"] and 0 < seen["tokens"]["input"] < 50
    assert (seen["tokens"]["output"], seen["tokens"]["output_asked"]) == (99, 99)


def test_a_plan_in_shadow_says_what_it_would_refuse(cli: Cli) -> None:
    account = cli.account("Acme", "--plan", "dark")
    seen = cli.ok("explain", account, "--model", "claude-a")
    assert (seen["decision"], seen["reason"], seen["status"]) == ("admitted_in_shadow", "limit_exceeded", 200)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "nobody"), "The model 'nobody' is not configured"),
        (("--model", "claude-a", "--feature", "nothing"), "names a feature that is not configured"),
        ((), "Name the model"),
        (("--key", "none"), "no key none"),
        (("--user", "none"), "no user none"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_line(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    result = cli("explain", cli.account(), *arguments)
    assert (result.code, result.err.count("\n")) == (2, 1) and said in result.err, result.err
