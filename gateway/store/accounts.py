"""Accounts: who is billed. Creation with the default plan, finding them again, suspending them.

An account is found by its own id, by its ``external_id`` (the app's own name for it) or by e-mail.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from sqlalchemy import Row, Select, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.accounts import Account, AccountStatus, Subscription, SubscriptionStatus
from gateway.domain.plans import Catalog
from gateway.domain.turns import begin
from gateway.errors import AccountNotFound, BadRequest, Conflict
from gateway.store.common import PAGE_MAX, Page, changed, lock_account, new_id, page_of, page_size, record, storable
from gateway.store.database import Database
from gateway.store.grants import insert_grants
from gateway.store.schema import accounts, subscriptions

_NAME_MAX = 200

# An account with its current subscription, as every reader of accounts sees it.
SUBSCRIPTION_COLUMNS = (
    subscriptions.c.id.label("subscription_id"),
    subscriptions.c.plan,
    subscriptions.c.plan_version,
    subscriptions.c.status.label("subscription_status"),
    subscriptions.c.anchor_at_ms,
    subscriptions.c.period_starts_at_ms,
    subscriptions.c.period_ends_at_ms,
    subscriptions.c.granted_until_ms,
    subscriptions.c.trial_ends_at_ms,
    subscriptions.c.cancel_at_period_end,
    subscriptions.c.next_plan,
    subscriptions.c.paid_until_ms,
    subscriptions.c.terms,
)
CURRENT = (subscriptions.c.account_id == accounts.c.id) & (subscriptions.c.ended_at_ms == 0)
ACCOUNTS: Select[Any] = select(*accounts.c, *SUBSCRIPTION_COLUMNS).join_from(accounts, subscriptions, CURRENT)


class Accounts:
    """Accounts and their state."""

    def __init__(self, database: Database, catalog: Callable[[], Catalog]) -> None:
        self._database = database
        self._catalog = catalog

    async def create(
        self,
        name: str,
        *,
        now_ms: int,
        plan: str | None = None,
        email: str | None = None,
        external_id: str | None = None,
        terms: Mapping[str, object] | None = None,
        anchor_ms: int | None = None,
        ends_at_ms: int | None = None,
        actor: str = "system",
    ) -> Account:
        """An account on ``plan`` (the config's default plan) with the plan's first grants.

        Raises BadRequest (name, plan, missing terms), Conflict (the external id is taken), StoreUnavailable.
        """
        name, external_id, email = checked(name, external_id, email)
        catalog = self._catalog()
        chosen = catalog.plans.get(plan or catalog.default_plan)
        if chosen is None:
            raise BadRequest("unknown_plan", f"There is no plan {plan}.", param="plan")
        subscription, grants = begin(
            catalog,
            chosen,
            subscription_id=new_id(),
            now_ms=now_ms,
            anchor_ms=anchor_ms,
            ends_at_ms=ends_at_ms,
            terms=terms,
        )
        account_id = new_id()
        async with self._database.write() as connection:
            if external_id is not None and await _taken(connection, external_id):
                raise Conflict(f"There is already an account with the external id {external_id}.", param="external_id")
            await connection.execute(
                insert(accounts).values(
                    id=account_id,
                    external_id=external_id,
                    email=email,
                    name=name,
                    status=AccountStatus.ACTIVE.value,
                    created_at_ms=now_ms,
                )
            )
            row = await lock_account(connection, account_id)
            await insert_subscription(connection, account_id, subscription, now_ms)
            await insert_grants(connection, row, grants, now_ms=now_ms, reason="created")
            detail = {"name": name, "plan": subscription.plan, "external_id": external_id}
            await record(connection, "create_account", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)
        return Account(account_id, name, external_id, email, AccountStatus.ACTIVE, row.rev, subscription, now_ms)

    async def by_ref(self, ref: str) -> Account | None:
        """By our id, else by external id. Raises StoreUnavailable."""
        if not storable(ref):
            return None
        query = ACCOUNTS.where(or_(accounts.c.id == ref, accounts.c.external_id == ref))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        own = [row for row in rows if row.id == ref]
        return account_of((own or rows)[0]) if rows else None

    async def by_email(self, email: str) -> tuple[Account, ...]:
        """All accounts with this address, the oldest first; letters' case does not matter."""
        if not storable(email):
            return ()
        query = ACCOUNTS.where(accounts.c.email == email.strip().lower()).order_by(accounts.c.id)
        async with self._database.read() as connection:
            return tuple(account_of(row) for row in await connection.execute(query))

    async def list(
        self,
        *,
        after: str | None = None,
        limit: int = 100,
        plan: str | None = None,
        status: AccountStatus | None = None,
        search: str | None = None,
    ) -> Page[Account]:
        """Accounts in the order of their creation; ``search``: what stands in their name, e-mail, external id or id,
        whatever the letters' case. Raises StoreUnavailable."""
        size = page_size(limit)
        query = ACCOUNTS.order_by(accounts.c.id).limit(size + 1)
        if after is not None:
            query = query.where(accounts.c.id > after)
        if plan is not None:
            query = query.where(subscriptions.c.plan == plan)
        if status is not None:
            query = query.where(accounts.c.status == status.value)
        if search is not None:
            columns = (accounts.c.name, accounts.c.email, accounts.c.external_id, accounts.c.id)
            query = query.where(or_(*(column.icontains(search, autoescape=True) for column in columns)))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return page_of(rows, size, account_of, lambda row: str(row.id))

    async def ids(self) -> AsyncIterator[str]:
        """Every account's id in the order of creation, read in pages: for work over all accounts."""
        after = ""
        while True:
            query = select(accounts.c.id).where(accounts.c.id > after).order_by(accounts.c.id).limit(PAGE_MAX)
            async with self._database.read() as connection:
                page = (await connection.execute(query)).scalars().all()
            for account_id in page:
                yield account_id
            if len(page) < PAGE_MAX:
                return
            after = page[-1]

    async def counts(self) -> Mapping[tuple[str, str], int]:
        """How many accounts there are per (plan, subscription status)."""
        query = (
            select(subscriptions.c.plan, subscriptions.c.status, func.count())
            .where(subscriptions.c.ended_at_ms == 0)
            .group_by(subscriptions.c.plan, subscriptions.c.status)
        )
        async with self._database.read() as connection:
            return {(plan, status): count for plan, status, count in await connection.execute(query)}

    async def set_status(
        self, account_id: str, status: AccountStatus, *, now_ms: int, reason: str = "", actor: str = "system"
    ) -> Account:
        """Suspend an account, or let it call again. Raises AccountNotFound, StoreUnavailable."""
        async with self._database.write() as connection:
            before = await lock_account(connection, account_id)
            await connection.execute(update(accounts).where(accounts.c.id == account_id).values(status=status.value))
            await changed(connection, account_id, status.value, now_ms)
            detail = {
                "before": {"status": before.status},
                "after": {"status": status.value},
                "reason": reason,
            }
            await record(connection, "set_status", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)
            return account_of((await connection.execute(ACCOUNTS.where(accounts.c.id == account_id))).one())

    async def rename(
        self,
        account_id: str,
        *,
        name: str,
        email: str | None,
        external_id: str | None,
        now_ms: int,
        actor: str = "system",
    ) -> Account:
        """Change what an account is called. Raises AccountNotFound, BadRequest, Conflict, StoreUnavailable."""
        name, external_id, email = checked(name, external_id, email)
        async with self._database.write() as connection:
            row = await lock_account(connection, account_id)
            await connection.execute(
                update(accounts)
                .where(accounts.c.id == account_id)
                .values(name=name, email=email, external_id=external_id)
            )
            await changed(connection, account_id, "rename", now_ms)
            after = {"name": name, "email": email, "external_id": external_id}
            detail = {"before": {key: getattr(row, key) for key in after}, "after": after}
            await record(connection, "rename", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)
            return account_of((await connection.execute(ACCOUNTS.where(accounts.c.id == account_id))).one())


def subscription_of(row: Row[Any]) -> Subscription:
    """From a row of ``SUBSCRIPTION_COLUMNS``."""
    return Subscription(
        id=row.subscription_id,
        plan=row.plan,
        plan_version=row.plan_version,
        status=SubscriptionStatus(row.subscription_status),
        anchor_at_ms=row.anchor_at_ms,
        period_starts_at_ms=row.period_starts_at_ms,
        period_ends_at_ms=row.period_ends_at_ms,
        trial_ends_at_ms=row.trial_ends_at_ms,
        cancel_at_period_end=bool(row.cancel_at_period_end),
        next_plan=row.next_plan,
        paid_until_ms=row.paid_until_ms,
        terms=row.terms,
    )


def account_of(row: Row[Any]) -> Account:
    """From a row of ``ACCOUNTS``."""
    return Account(
        id=row.id,
        name=row.name,
        external_id=row.external_id,
        email=row.email,
        status=AccountStatus(row.status),
        rev=row.rev,
        subscription=subscription_of(row),
        created_at_ms=row.created_at_ms,
    )


def subscription_values(subscription: Subscription) -> dict[str, Any]:
    """What of a subscription changes when it moves."""
    return {
        "plan": subscription.plan,
        "plan_version": subscription.plan_version,
        "status": subscription.status.value,
        "anchor_at_ms": subscription.anchor_at_ms,
        "period_starts_at_ms": subscription.period_starts_at_ms,
        "period_ends_at_ms": subscription.period_ends_at_ms,
        "trial_ends_at_ms": subscription.trial_ends_at_ms,
        "cancel_at_period_end": int(subscription.cancel_at_period_end),
        "next_plan": subscription.next_plan,
        "paid_until_ms": subscription.paid_until_ms,
        "terms": dict(subscription.terms),
    }


async def insert_subscription(
    connection: AsyncConnection, account_id: str, subscription: Subscription, now_ms: int
) -> None:
    await connection.execute(
        insert(subscriptions).values(
            id=subscription.id,
            account_id=account_id,
            granted_until_ms=subscription.period_ends_at_ms,
            created_at_ms=now_ms,
            **subscription_values(subscription),
        )
    )


async def current(connection: AsyncConnection, account_id: str) -> Row[Any]:
    """The account with its current subscription. Raises AccountNotFound."""
    row: Row[Any] | None = (await connection.execute(ACCOUNTS.where(accounts.c.id == account_id))).one_or_none()
    if row is None:
        raise AccountNotFound
    return row


async def _taken(connection: AsyncConnection, external_id: str) -> bool:
    found = await connection.execute(select(accounts.c.id).where(accounts.c.external_id == external_id))
    return found.first() is not None


def checked(name: str, external_id: str | None, email: str | None) -> tuple[str, str | None, str | None]:
    """Trimmed, and without what no database could store or no list could show. Raises BadRequest."""
    cleaned = [(value or "").strip() for value in (name, external_id, email)]
    for param, value in zip(("name", "external_id", "email"), cleaned, strict=True):
        if len(value) > _NAME_MAX or not value.isprintable():
            raise BadRequest("invalid_name", f"{param} must be at most {_NAME_MAX} printable characters.", param=param)
    if not cleaned[0]:
        raise BadRequest("invalid_name", "An account needs a name.", param="name")
    return cleaned[0], cleaned[1] or None, cleaned[2].lower() or None
