"""Subscriptions: an account's place on a plan, moved by people and by time.

``domain.turns`` decides; here it is written, each move in one transaction with its grants, ledger entries and push.

Rules
1. A period's grants are inserted once, under their keys, whoever notices the turn and however many at once.
2. The next period's grants may be inserted up to a day ahead, so that a turn survives an outage of this database; at
   most one period ahead, and cancelling takes them back while they have not started.
3. A plan's newer version counts at once: what it changes in the running period is adjusted once per version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from sqlalchemy import select, update

from gateway.domain.accounts import Account, SubscriptionStatus
from gateway.domain.grants import NewGrant, period_grants
from gateway.domain.plans import Catalog
from gateway.domain.turns import Ended, Fallback, NextPeriod, PastDue, Stay, Turned, begin, decide, renewed
from gateway.errors import BadRequest
from gateway.store.accounts import account_of, current, insert_subscription, subscription_of
from gateway.store.common import changed, lock_account, new_id, record
from gateway.store.database import Database
from gateway.store.grants import insert_grants
from gateway.store.moves import close_debts, close_plan, move, take_back_ahead
from gateway.store.schema import accounts, grants, subscriptions

AHEAD_MS: Final = 24 * 3600 * 1000


class Subscriptions:
    """Moves of subscriptions. ``catalog`` gives the plans as they are configured now."""

    def __init__(self, database: Database, catalog: Callable[[], Catalog], *, grace_ms: int = 0) -> None:
        self._database = database
        self._catalog = catalog
        self.grace_ms = grace_ms

    async def subscribe(
        self,
        account_id: str,
        plan: str,
        *,
        now_ms: int,
        terms: Mapping[str, object] | None = None,
        anchor_ms: int | None = None,
        ends_at_ms: int | None = None,
        actor: str = "system",
    ) -> Account:
        """Move the account to a plan now: its period starts anew, nothing of it is used, its status is active.

        What the old plan granted ends; packages, gifts and bonuses stay. Raises AccountNotFound, BadRequest (plan,
        missing terms), StoreUnavailable.
        """
        catalog = self._catalog()
        chosen = catalog.plans.get(plan)
        if chosen is None:
            raise BadRequest("unknown_plan", f"There is no plan {plan}.", param="plan")
        subscription, new = begin(
            catalog,
            chosen,
            subscription_id=new_id(),
            now_ms=now_ms,
            anchor_ms=anchor_ms,
            ends_at_ms=ends_at_ms,
            terms=terms,
        )
        async with self._database.write() as connection:
            account = await lock_account(connection, account_id)
            old = await current(connection, account_id)
            await close_plan(connection, account_id, old.subscription_id, now_ms)
            left = update(subscriptions).where(subscriptions.c.id == old.subscription_id).values(ended_at_ms=now_ms)
            await connection.execute(left)
            await insert_subscription(connection, account_id, subscription, now_ms)
            await insert_grants(connection, account, new, now_ms=now_ms, reason=f"plan {plan}")
            await close_debts(connection, account_id, carry=chosen.debt == "carry", now_ms=now_ms)
            await changed(connection, account_id, "subscribe", now_ms)
            detail = {"from": old.plan, "to": plan, "subscription": subscription.id}
            await record(connection, "subscribe", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)
            return account_of(await current(connection, account_id))

    async def turn(self, account_id: str, *, now_ms: int) -> Turned:
        """Do what is due at ``now_ms``.

        Any number of callers at once: the first one writes, the others find it done. Raises AccountNotFound,
        StoreUnavailable.
        """
        async with self._database.write() as connection:
            account = await lock_account(connection, account_id)
            row = await current(connection, account_id)
            catalog = self._catalog()
            decision = decide(catalog, subscription_of(row), now_ms, grace_ms=self.grace_ms)
            new: tuple[NewGrant, ...] = ()
            match decision:
                case Stay():
                    return Turned("stay", row.plan, row.plan)
                case NextPeriod(moved, new):
                    turned = Turned("next_period", row.plan, moved.plan)
                case Fallback(moved, new):
                    turned = Turned("fallback", row.plan, moved.plan)
                case PastDue(moved):
                    turned = Turned("past_due", row.plan, moved.plan)
                case Ended(moved):
                    turned = Turned("ended", row.plan, None)
            outcome = turned.outcome
            goes_on = outcome in ("next_period", "past_due")
            if not goes_on:
                await take_back_ahead(connection, account_id, row, now_ms)
            await move(connection, row, moved, keeps_ahead=goes_on)
            await insert_grants(connection, account, new, now_ms=now_ms, reason=outcome)
            old_plan = catalog.plans.get(row.plan)
            carry = old_plan is not None and old_plan.debt == "carry"
            await close_debts(connection, account_id, carry=carry, now_ms=now_ms)
            await changed(connection, account_id, outcome, now_ms)
            detail = {"from": row.plan, "to": moved.plan, "status": moved.status.value}
            await record(connection, outcome, account_id=account_id, actor="clock", now_ms=now_ms, detail=detail)
            return turned

    async def ahead(self, account_id: str, *, now_ms: int) -> Turned | None:
        """Insert the next period's grants if it starts within a day and renews by itself; None when it did not.

        Raises AccountNotFound, StoreUnavailable.
        """
        async with self._database.write() as connection:
            account = await lock_account(connection, account_id)
            row = await current(connection, account_id)
            subscription = subscription_of(row)
            plan = self._catalog().plans.get(subscription.plan)
            end_ms = subscription.period_ends_at_ms
            due = now_ms < end_ms <= now_ms + AHEAD_MS and row.granted_until_ms <= end_ms
            renews = plan is not None and plan.renews == "by_itself" and not subscription.cancel_at_period_end
            if plan is None or not (due and renews and subscription.status is SubscriptionStatus.ACTIVE):
                return None
            following = renewed(plan, subscription, end_ms)
            new = period_grants(
                plan, following.terms, following.id,
                starts_at_ms=following.period_starts_at_ms, ends_at_ms=following.period_ends_at_ms,
            )  # fmt: skip
            await insert_grants(connection, account, new, now_ms=now_ms, reason="ahead")
            await connection.execute(
                update(subscriptions)
                .where(subscriptions.c.id == subscription.id)
                .values(granted_until_ms=following.period_ends_at_ms)
            )
            await changed(connection, account_id, "ahead", now_ms)
            return Turned("ahead", plan.name, plan.name)

    async def due_ahead(self, *, now_ms: int, limit: int = 100) -> tuple[str, ...]:
        """Accounts that used their running period, whose next one starts within a day and has no grants yet."""
        query = (
            select(subscriptions.c.account_id)
            .join(accounts, accounts.c.id == subscriptions.c.account_id)
            .where(
                subscriptions.c.ended_at_ms == 0,
                subscriptions.c.granted_until_ms > now_ms,
                subscriptions.c.granted_until_ms <= now_ms + AHEAD_MS,
                subscriptions.c.granted_until_ms == subscriptions.c.period_ends_at_ms,
                subscriptions.c.status == SubscriptionStatus.ACTIVE.value,
                subscriptions.c.cancel_at_period_end == 0,
                accounts.c.charged_at_ms >= subscriptions.c.period_starts_at_ms,
            )
            .order_by(subscriptions.c.granted_until_ms)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return tuple((await connection.execute(query)).scalars())

    async def begun_ahead(self, *, now_ms: int, limit: int = 100) -> tuple[str, ...]:
        """Accounts in a period that was granted ahead, whose turn nobody has noticed yet."""
        query = (
            select(subscriptions.c.account_id)
            .where(
                subscriptions.c.ended_at_ms == 0,
                subscriptions.c.granted_until_ms > now_ms,
                subscriptions.c.granted_until_ms > subscriptions.c.period_ends_at_ms,
                subscriptions.c.period_ends_at_ms <= now_ms,
            )
            .order_by(subscriptions.c.granted_until_ms)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return tuple((await connection.execute(query)).scalars())

    async def _notice(self, account_id: str, now_ms: int) -> None:
        """A period that was granted ahead and has begun is the running one, whether or not somebody noticed."""
        async with self._database.read() as connection:
            row = await current(connection, account_id)
        if row.period_ends_at_ms <= now_ms < row.granted_until_ms:
            await self.turn(account_id, now_ms=now_ms)

    async def cancel(self, account_id: str, *, now_ms: int, actor: str = "system") -> Account:
        """Let the subscription end with its period; a next period's grants that were inserted ahead are taken back.

        Raises AccountNotFound, StoreUnavailable.
        """
        await self._notice(account_id, now_ms)
        async with self._database.write() as connection:
            await lock_account(connection, account_id)
            row = await current(connection, account_id)
            await take_back_ahead(connection, account_id, row, now_ms)
            moved = replace(subscription_of(row), cancel_at_period_end=True)
            await move(connection, row, moved)
            await changed(connection, account_id, "cancel", now_ms)
            await record(connection, "cancel", account_id=account_id, actor=actor, now_ms=now_ms)
            return account_of(await current(connection, account_id))

    async def extend(self, account_id: str, *, ends_at_ms: int, now_ms: int, actor: str = "system") -> Account:
        """Move the running period's end (a trial's end with it), and the end of what it granted; an expired trial or
        subscription lives again when the new end is ahead.

        Raises AccountNotFound, BadRequest (a plan without an end, an end in the past), StoreUnavailable.
        """
        if ends_at_ms <= now_ms:
            raise BadRequest("invalid_end", "The new end must be in the future.", param="ends_at")
        await self._notice(account_id, now_ms)
        async with self._database.write() as connection:
            await lock_account(connection, account_id)
            row = await current(connection, account_id)
            subscription = subscription_of(row)
            old_ms = subscription.period_ends_at_ms
            if old_ms == 0:
                raise BadRequest("invalid_end", "This plan has no end to move.", param="ends_at")
            await take_back_ahead(connection, account_id, row, now_ms)
            status = subscription.status
            if not status.usable:
                status = SubscriptionStatus.TRIALING if subscription.trial_ends_at_ms else SubscriptionStatus.ACTIVE
            moved = replace(
                subscription,
                status=status,
                period_ends_at_ms=ends_at_ms,
                trial_ends_at_ms=ends_at_ms if subscription.trial_ends_at_ms else 0,
            )
            await move(connection, row, moved)
            await connection.execute(
                update(grants)
                .where(
                    grants.c.account_id == account_id,
                    grants.c.expires_at_ms == old_ms,
                    grants.c.starts_at_ms >= subscription.period_starts_at_ms,
                )
                .values(expires_at_ms=ends_at_ms)
            )
            await changed(connection, account_id, "extend", now_ms)
            detail = {"from_ms": old_ms, "to_ms": ends_at_ms}
            await record(connection, "extend", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)
            return account_of(await current(connection, account_id))
