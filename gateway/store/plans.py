"""Plan versions: what a plan promised when, and how running subscriptions follow a changed config.

Rules
1. Versions are registered in order, and a subscription only moves forward along them: replicas that run an older config
   for a while change nothing back. An operator who takes an older version back into use does: it is registered anew.
2. What a version changes in the running period is adjusted once per (subscription, period, version). A smaller
   allowance takes back what is neither used nor held.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Row, delete, func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.accounts import GrantState, Subscription
from gateway.domain.grants import BESIDE_ALLOWANCE, PRIORITY, NewGrant, adjustment, adjustment_key, allowance
from gateway.domain.plans import Catalog, Plan
from gateway.store.accounts import current, subscription_of
from gateway.store.common import changed, inserting, lock_account, record
from gateway.store.database import Database
from gateway.store.grants import grant_of, insert_grants, withdraw
from gateway.store.moves import move, take_back_ahead
from gateway.store.schema import grants, plan_versions, subscriptions


class Plans:
    """The versions of the configured plans, and who is still on an older one."""

    def __init__(self, database: Database, catalog: Callable[[], Catalog]) -> None:
        self._database = database
        self._catalog = catalog

    async def register(self, *, now_ms: int, returned: Collection[str] = ()) -> None:
        """Note the configured plans' versions, after each load of a config. ``returned``: versions that are meant to be
        the newest, even if they were there before. Raises StoreUnavailable."""
        plans = self._catalog().plans.values()
        rows = [_row(plan, now_ms) for plan in plans]
        async with self._database.write() as connection:
            newest = select(func.max(plan_versions.c.id)).group_by(plan_versions.c.plan)
            for plan in plans:
                if plan.version in returned:
                    await connection.execute(
                        delete(plan_versions).where(
                            plan_versions.c.plan == plan.name,
                            plan_versions.c.version == plan.version,
                            plan_versions.c.id.not_in(newest),
                        )
                    )
            await connection.execute(inserting(self._database.dialect, plan_versions).on_conflict_do_nothing(), rows)

    async def outdated(self, *, limit: int = 100, after: str = "") -> tuple[str, ...]:
        """Accounts whose subscription is at another version of its plan than the config's, by their ids: those after
        this one. Raises StoreUnavailable."""
        versions = [(plan.name, plan.version) for plan in self._catalog().plans.values()]
        here = tuple_(subscriptions.c.plan, subscriptions.c.plan_version)
        query = (
            select(subscriptions.c.account_id)
            .join(
                plan_versions,
                (plan_versions.c.plan == subscriptions.c.plan)
                & (plan_versions.c.version == subscriptions.c.plan_version),
            )
            .where(subscriptions.c.ended_at_ms == 0, here.not_in(versions), plan_versions.c.id < _newest(versions))
            .where(subscriptions.c.account_id > after)
            .order_by(subscriptions.c.account_id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return tuple((await connection.execute(query)).scalars())

    async def advance(self, account_id: str, *, now_ms: int, held: Mapping[int, int] | None = None) -> bool:
        """Bring the account's subscription to its plan's newest version; whether it moved. ``held`` is what open holds
        have of each grant number.

        Raises AccountNotFound, BadRequest (missing terms), StoreUnavailable.
        """
        async with self._database.write() as connection:
            account = await lock_account(connection, account_id)
            row = await current(connection, account_id)
            subscription = subscription_of(row)
            plan = self._catalog().plans.get(subscription.plan)
            if plan is None or plan.version == subscription.plan_version:
                return False
            old = await _older(connection, subscription, plan)
            if old is None:
                return False
            old_allowance, registration = old
            moved = replace(subscription, plan_version=plan.version)
            await take_back_ahead(connection, account_id, row, now_ms)
            await move(connection, row, moved)
            before = replace(plan, allowance=old_allowance if subscription.status.usable else plan.allowance)
            was, now = allowance(before, subscription.terms), allowance(plan, subscription.terms)
            for wallet in sorted(was.keys() | now.keys()):
                mine = await _of_period(connection, account_id, subscription, wallet)
                change = adjustment(
                    old=was.get(wallet, 0),
                    new=now.get(wallet, 0),
                    granted=sum(grant.amount for grant in mine),
                    used=sum(grant.used for grant in mine),
                    held=sum((held or {}).get(grant.number, 0) for grant in mine),
                )
                if change < 0:
                    reason = f"plan {plan.name} changed"
                    await withdraw(
                        connection, account_id, reversed(mine), -change, now_ms=now_ms, reason=reason, held=held
                    )
                elif change > 0:
                    new = _adjusting(subscription, f"{plan.version}.{registration}", wallet, change, now_ms)
                    await insert_grants(connection, account, (new,), now_ms=now_ms, reason=f"plan {plan.name} changed")
                    account = await lock_account(connection, account_id)  # its count of grants grew
            await changed(connection, account_id, "plan_version", now_ms)
            detail = {"plan": plan.name, "from": subscription.plan_version, "to": plan.version}
            await record(
                connection, "plan_version", account_id=account_id, actor="config", now_ms=now_ms, detail=detail
            )
            return True


def _row(plan: Plan, now_ms: int) -> dict[str, Any]:
    content = {
        "label": plan.label,
        "price": str(plan.price),
        "period": str(plan.period),
        "renews": plan.renews,
        "ends": plan.ends,
        "allowance": dict(plan.allowance),
    }
    return {"plan": plan.name, "version": plan.version, "content": content, "created_at_ms": now_ms}


def _newest(versions: list[tuple[str, str]]) -> Any:
    """The registration of the configured version of the subscription's plan."""
    newer = plan_versions.alias()
    return (
        select(newer.c.id)
        .where(newer.c.plan == subscriptions.c.plan, tuple_(newer.c.plan, newer.c.version).in_(versions))
        .scalar_subquery()
    )


async def _older(
    connection: AsyncConnection, subscription: Subscription, plan: Plan
) -> tuple[dict[str, Any], int] | None:
    """The allowance of the subscription's version, if that was registered before the plan's, and the number of the
    plan's registration; else None."""
    found = await connection.execute(select(plan_versions).where(plan_versions.c.plan == plan.name))
    by_version: dict[str, Row[Any]] = {row.version: row for row in found}
    old, new = by_version.get(subscription.plan_version), by_version.get(plan.version)
    if old is None or new is None or old.id > new.id:
        return None
    return dict(old.content["allowance"]), new.id


async def _of_period(
    connection: AsyncConnection, account_id: str, subscription: Subscription, wallet: str
) -> tuple[GrantState, ...]:
    """The grants that the subscription gave for its running period, adjustments included, the oldest first."""
    query = (
        select(grants)
        .where(
            grants.c.account_id == account_id,
            grants.c.wallet == wallet,
            grants.c.starts_at_ms >= subscription.period_starts_at_ms,
            grants.c.source.not_in(BESIDE_ALLOWANCE),
            or_(
                grants.c.key.startswith(f"{subscription.id}:", autoescape=True),
                grants.c.key.startswith(f"once:{subscription.plan}:", autoescape=True),
            ),
        )
        .order_by(grants.c.number)
    )
    return tuple(grant_of(row) for row in await connection.execute(query))


def _adjusting(subscription: Subscription, version: str, wallet: str, amount: int, now_ms: int) -> NewGrant:
    return NewGrant(
        key=adjustment_key(
            subscription.id, starts_at_ms=subscription.period_starts_at_ms, version=version, wallet=wallet
        ),
        wallet=wallet,
        amount=amount,
        source="adjustment",
        priority=PRIORITY["adjustment"],
        starts_at_ms=now_ms,
        expires_at_ms=subscription.period_ends_at_ms,
    )
