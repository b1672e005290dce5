"""Many accounts at once: all of them or none, with a handful of statements whatever their number.

What is made is what ``Accounts.create`` makes, one by one; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.accounts import Account, AccountStatus
from gateway.domain.grants import NewGrant
from gateway.domain.ledger import Entry, Kind
from gateway.domain.plans import Catalog
from gateway.domain.turns import begin
from gateway.errors import BadRequest, RequestError
from gateway.store.accounts import checked, subscription_values
from gateway.store.common import among, new_id
from gateway.store.database import Database
from gateway.store.grants import entry_values
from gateway.store.schema import accounts, audit_log, grants, ledger, subscriptions

_FIRST_REV = 1
_ASKED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class NewAccount:
    """An account to be made. ``plan`` None: the default plan."""

    name: str
    plan: str | None = None
    email: str | None = None
    external_id: str | None = None


class BadRow(RequestError):
    """A row cannot be taken, so nothing was made."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index  # from 0


async def create_accounts(
    database: Database, catalog: Catalog, rows: Sequence[NewAccount], *, now_ms: int, actor: str
) -> tuple[Account, ...]:
    """The accounts of ``rows``, in their order, in one transaction.

    Raises BadRow (the first one with a bad name, plan or external id), Conflict (an external id that was taken in the
    same moment), StoreUnavailable.
    """
    made = [_planned(catalog, row, index, now_ms) for index, row in enumerate(rows)]
    _refuse_twins(rows)
    async with database.write() as connection:
        await _refuse_taken(connection, database, rows)
        values = [_values(account, new, now_ms, actor) for account, new in made]
        for index, table in enumerate((accounts, subscriptions, grants, ledger, audit_log)):
            inserted = [each for of_account in values for each in of_account[index]]
            if inserted:
                await connection.execute(insert(table), inserted)
    return tuple(account for account, _ in made)


def _planned(catalog: Catalog, row: NewAccount, index: int, now_ms: int) -> tuple[Account, tuple[NewGrant, ...]]:
    try:
        name, external_id, email = checked(row.name, row.external_id, row.email)
        plan = catalog.plans.get(row.plan or catalog.default_plan)
        if plan is None:
            raise BadRequest("unknown_plan", f"There is no plan {row.plan}.", param="plan")
        subscription, new = begin(catalog, plan, subscription_id=new_id(), now_ms=now_ms)
    except BadRequest as error:
        raise BadRow(index, error.message) from error
    active = AccountStatus.ACTIVE
    return Account(new_id(), name, external_id, email, active, _FIRST_REV, subscription, now_ms), new


def _refuse_twins(rows: Sequence[NewAccount]) -> None:
    seen: set[str] = set()
    for index, row in enumerate(rows):
        external_id = (row.external_id or "").strip()
        if external_id and external_id in seen:
            raise BadRow(index, f"The external id {external_id} stands in an earlier row too.")
        seen.add(external_id)


async def _refuse_taken(connection: AsyncConnection, database: Database, rows: Sequence[NewAccount]) -> None:
    wanted = {(row.external_id or "").strip(): index for index, row in enumerate(rows)}
    wanted.pop("", None)
    names = list(wanted)
    query = select(accounts.c.external_id).where(among(database.dialect, accounts.c.external_id, "names"))
    taken: list[str] = []
    for start in range(0, len(names), _ASKED_AT_ONCE):
        found = await connection.execute(query, {"names": names[start : start + _ASKED_AT_ONCE]})
        taken += found.scalars()
    if taken:
        first = min(taken, key=lambda name: wanted[name])
        raise BadRow(wanted[first], f"There is already an account with the external id {first}.")


def _values(account: Account, new: Sequence[NewGrant], now_ms: int, actor: str) -> tuple[list[dict[str, Any]], ...]:
    """The account's rows: of accounts, subscriptions, grants, ledger, audit log."""
    subscription = account.subscription
    made = list(enumerate(new, 1))
    entries = [Entry(grant.wallet, number, Kind.GRANTED, grant.amount) for number, grant in made if grant.amount]
    detail = {"name": account.name, "plan": subscription.plan, "external_id": account.external_id}
    return (
        [
            {
                "id": account.id,
                "external_id": account.external_id,
                "email": account.email,
                "name": account.name,
                "status": account.status.value,
                "rev": account.rev,
                "grants_made": len(made),
                "created_at_ms": now_ms,
            }
        ],
        [
            {
                "id": subscription.id,
                "account_id": account.id,
                "granted_until_ms": subscription.period_ends_at_ms,
                "created_at_ms": now_ms,
                **subscription_values(subscription),
            }
        ],
        [_grant_values(account.id, number, grant, now_ms) for number, grant in made],
        entry_values(account.id, entries, now_ms=now_ms, reason="created"),
        [
            {
                "account_id": account.id,
                "actor": actor,
                "action": "create_account",
                "detail": detail,
                "created_at_ms": now_ms,
            }
        ],
    )


def _grant_values(account_id: str, number: int, grant: NewGrant, now_ms: int) -> dict[str, Any]:
    return {
        "account_id": account_id,
        "number": number,
        "id": new_id(),
        "wallet": grant.wallet,
        "amount": grant.amount,
        "source": grant.source,
        "priority": grant.priority,
        "starts_at_ms": grant.starts_at_ms,
        "expires_at_ms": grant.expires_at_ms,
        "key": grant.key,
        "unit_price": grant.unit_price or None,
        "reason": "created",
        "created_at_ms": now_ms,
    }
