"""The command line's outline: the groups, in the order in which help shows them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from gateway.cli.frame import ConfigOption, DataOption, Place


def group(help_text: str) -> typer.Typer:
    return typer.Typer(help=help_text, no_args_is_help=True, pretty_exceptions_enable=False)


app = typer.Typer(
    name="tollgate",
    help="Tollgate: a metering gateway in front of LLM APIs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
accounts = group("Accounts: who is billed. Name one by its id, its external id or its e-mail.")
teams = group("Teams inside an account.")
users = group("Users inside an account.")
keys = group("API keys. A key is shown once, when it is made.")
plans = group("What the config sells.")
subscription = group("An account's running subscription.")
budgets = group("Ceilings of a team, a user or a key.")

for name, each in (
    ("accounts", accounts),
    ("teams", teams),
    ("users", users),
    ("keys", keys),
    ("plans", plans),
    ("subscription", subscription),
    ("budgets", budgets),
):
    app.add_typer(each, name=name)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tollgate {version('tollgate')}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    config: ConfigOption = None,
    data: DataOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    ctx.obj = Place(config, data)
