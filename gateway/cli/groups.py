"""The command line's outline: the groups, in the order in which help shows them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from gateway.cli.frame import ConfigOption, DataOption, Place

RUNNING, WHO, MONEY, LOOKING = "Running", "Accounts", "Plans and money", "Looking"
PANELS: Final = {
    RUNNING: "serve check-config migrate doctor upstream audit rebuild export",
    WHO: "accounts teams users keys budgets",
    MONEY: "plans packages subscribe subscription grant adjust payments stripe",
    LOOKING: "balance usage transactions forecast explain insight alerts log",
}
ORDER: Final = " ".join(PANELS.values()).split()


class Outline(TyperGroup):
    """Commands as ``PANELS`` has them, not as their modules are imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)


def panel_of(command: str) -> str:
    """Under which heading help shows it."""
    return next(panel for panel, commands in PANELS.items() if command in commands.split())


def group(help_text: str) -> typer.Typer:
    return typer.Typer(help=help_text, no_args_is_help=True, pretty_exceptions_enable=False)


app = typer.Typer(
    name="tollgate",
    cls=Outline,
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
packages = group("What can be bought once.")
payments = group("What was paid.")
alerts = group("Who was told of what, and whether the channels work.")
stripe = group("What Stripe told, and its books beside ours.")
budgets = group("Ceilings of a team, a user or a key.")

for name, each in (
    ("accounts", accounts),
    ("teams", teams),
    ("users", users),
    ("keys", keys),
    ("plans", plans),
    ("subscription", subscription),
    ("budgets", budgets),
    ("packages", packages),
    ("payments", payments),
    ("alerts", alerts),
    ("stripe", stripe),
):
    app.add_typer(each, name=name, rich_help_panel=panel_of(name))


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
