"""``tollgate keys …``. A key is printed once, by the command that makes it, and is never an argument."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from gateway.cli import groups
from gateway.cli.accounts import Yes
from gateway.cli.frame import Reach, command
from gateway.cli.reading import later_ms
from gateway.cli.terminal import Output, confirm, listing, record
from gateway.errors import RequestError

if TYPE_CHECKING:
    from gateway.billing.keys import FreshKey
    from gateway.billing.office import Office
    from gateway.store.keys import Key

KEYS_SHOWN: Final = "id prefix name status team user created_at expires_at"
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id, as lists show it.")]
MaybeAccount = Annotated[
    str | None, typer.Argument(metavar="ACCOUNT", help="Id, external id or e-mail.", show_default=False)
]
Service = Annotated[
    bool, typer.Option("--service", help="A key of the installation, for a backend that acts for many.")
]


@command(groups.keys, "create")
async def create(
    office: Office,
    account: MaybeAccount = None,
    service: Service = False,
    team: Annotated[str | None, typer.Option("--team", help="Id or external id.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Id or external id.")] = None,
    name: Annotated[str, typer.Option("--name", help="What lists call it.")] = "",
    expires: Annotated[str | None, typer.Option("--expires", help="A time, a date, or a duration such as 90d.")] = None,
) -> Output:
    """Make a key of an account, or with --service one of the installation. It is shown this once."""
    _account_or_service(account, service)
    ends_ms = 0 if expires is None else later_ms(expires, office.desk.now_ms(), param="--expires")
    fresh = await office.keys.create(account, team_ref=team, user_ref=user, name=name, expires_at_ms=ends_ms)
    return _fresh(fresh, office)


@command(groups.keys, "list")
async def list_keys(
    office: Office,
    account: MaybeAccount = None,
    service: Service = False,
    revoked: Annotated[bool, typer.Option("--all", help="Revoked ones too.")] = False,
) -> Output:
    """List the keys of an account, or with --service those of the installation."""
    from gateway.billing.views import key_view

    _account_or_service(account, service)
    found = await office.keys.list(account, revoked=revoked)
    return listing([key_view(key, office.desk.now_ms()) for key in found], KEYS_SHOWN, nothing="There is no key.")


@command(groups.keys, "show")
async def show(office: Office, key: KeyId) -> Output:
    """Show what is known of a key; the key itself is not."""
    from gateway.billing.views import key_view

    return record(key_view(await office.keys.get(key), office.desk.now_ms()))


@command(groups.keys, "rotate", Reach.DELIVERY)
async def rotate(
    office: Office,
    key: KeyId,
    overlap: Annotated[str, typer.Option("--overlap", help="How long the old key still works; 0: not at all.")] = "24h",
) -> Output:
    """Make a new key in place of this one, which still works for a while. It is shown this once."""
    from gateway.billing.desk import duration_ms

    fresh = await office.keys.rotate(key, overlap_ms=duration_ms(overlap, param="--overlap"))
    return _fresh(fresh, office, replaces=await office.keys.get(key))


@command(groups.keys, "revoke", Reach.DELIVERY)
async def revoke(office: Office, key: KeyId, yes: Yes = False) -> Output:
    """Refuse a key from its next call on. Once more changes nothing."""
    from gateway.billing.views import key_view

    found = await office.keys.get(key)
    if not found.revoked_at_ms:
        confirm(f"Revoke the key {found.prefix}… {found.name}?".replace(" ?", "?"), yes=yes)
    return record(key_view(await office.keys.revoke(key), office.desk.now_ms()))


def _fresh(fresh: FreshKey, office: Office, replaces: Key | None = None) -> Output:
    """The key, with a word that it won't come again."""
    from gateway.billing.views import key_view

    seen = key_view(fresh.key, office.desk.now_ms())
    whole = {"id": seen.pop("id"), "key": fresh.text, **seen}
    shown = "id key name account expires_at"
    if replaces is not None:
        old = key_view(replaces, office.desk.now_ms())
        whole |= {"replaces": replaces.id, "old_key_expires_at": old["expires_at"]}
        shown += " replaces old_key_expires_at"
    return record(whole, shown, notes=("Keep the key: it is not shown again.",))


def _account_or_service(account: str | None, service: bool) -> None:
    if (account is None) != service:
        raise RequestError("Name an account, or say --service: one of the two.")
