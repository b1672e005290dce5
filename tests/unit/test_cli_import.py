"""``tollgate accounts import``: all of a file or nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Cli, installation

GOOD = "name,plan,email,external_id\nAcme,pro,a@acme.org,org-1\nBeta,,,org-2\n"

# (the file, what the message must say); the existing account has the external id "taken"
BAD = [
    ("", "row 1: expected a heading of name, plan, email, external_id, found nothing"),
    ("Acme,pro\n", "row 1: expected a heading"),
    ("name,plan,colour\nAcme,pro,red\n", "row 1: expected a heading"),
    ("name,name\nAcme,pro\n", "row 1: expected a heading"),
    (GOOD + "Gamma,pro\n", "row 4: expected 4 columns, found 2"),
    (GOOD + ",pro,,\n", "row 4: An account needs a name"),
    (GOOD + "Gamma,platinum,,\n", "row 4: There is no plan platinum"),
    (GOOD + "Gamma,,,org-1\n", "row 4: the external id 'org-1' stands in row 2 too"),
    (GOOD + "Gamma,,,taken\n", "row 4: There is already an account with the external id taken"),
    (GOOD + 'Ga"mma,,,\n"open', "row "),
    (GOOD + "\n\nGamma\tx,,,\n", "row 6: name must be at most 200 printable"),
    (GOOD + "Gamma,custom,,\n", "row 4: Plan custom has a custom allowance"),
]


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return installation(tmp_path, capsys)


def test_a_good_file_makes_every_account(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "accounts.csv"
    file.write_text("\ufeff" + GOOD.replace("\n", "\r\n"), encoding="utf-8", newline="")
    made = cli.ok("accounts", "import", str(file))
    assert [(each["name"], each["plan"], each["external_id"]) for each in made] == [
        ("Acme", "pro", "org-1"), ("Beta", "trial", "org-2"),
    ]  # fmt: skip
    assert cli.ok("accounts", "list") == made
    assert cli.ok("balance", "org-1")["wallets"][0]["available"] == "500000"


@pytest.mark.parametrize(("text", "message"), BAD, ids=range(len(BAD)))
def test_one_bad_row_is_named_and_nothing_is_imported(cli: Cli, tmp_path: Path, text: str, message: str) -> None:
    cli.account("There", "--external-id", "taken")
    file = tmp_path / "accounts.csv"
    file.write_text(text)
    result = cli("accounts", "import", str(file))
    assert (result.code, result.out) == (2, "")
    assert f"{file}: {message}" in result.err and len(result.err.splitlines()) == 1
    assert [account["name"] for account in cli.ok("accounts", "list")] == ["There"]
    assert len(cli.ok("log")) == 1


def test_a_file_that_is_none_is_said_in_a_line(cli: Cli, tmp_path: Path) -> None:
    cli.account()
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"name\n\xff\xfe\n")
    for file in (tmp_path, tmp_path / "missing.csv", binary):
        result = cli("accounts", "import", str(file))
        assert result.code == 2 and result.err.startswith(f"tollgate: {file}: ") and len(result.err.splitlines()) == 1
