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
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Row, and_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain import tidings
from gateway.domain.accounts import Account, Subscription, SubscriptionStatus
from gateway.domain.alerts import TRIAL_EXPIRED, trial_key
from gateway.domain.grants import BY_HAND, period_grants
from gateway.domain.plans import Catalog, Plan, is_trial
from gateway.domain.proration import is_downgrade
from gateway.domain.turns import Stay, Turned, begin, covered_until_ms, decide, end_now, goes_on, renewed
from gateway.errors import BadRequest, Conflict
from gateway.store.accounts import account_of, current, subscription_of
from gateway.store.alerts import NewAlert, raise_alert
from gateway.store.common import changed, lock_account, new_id
from gateway.store.database import Database
from gateway.store.grants import insert_grants
from gateway.store.moves import Taken, apply, close_plan, finish, known_plan, move, start, take_back_ahead
from gateway.store.owed import credit_rest
from gateway.store.schema import accounts, grants, subscriptions

AHEAD_MS: Final = 24 * 3600 * 1000
AHEAD_PERIOD_MIN_MS: Final = 3600 * 1000  # a shorter period would be over before its beginning is noticed


@dataclass(frozen=True, slots=True)
class Change:
    """A change of plan: when it takes effect, and what is credited of the old plan's price, in the currency's smallest
    unit."""

    account: Account
    at_ms: int
    credit: int


class Subscriptions:
    """Moves of subscriptions. ``catalog`` gives the plans as they are configured now."""

    def __init__(self, database: Database, catalog: Callable[[], Catalog]) -> None:
        self._database = database
        self._catalog = catalog

    @property
    def grace_ms(self) -> int:
        """How long a plan stays usable while its payment is due."""
        return self._catalog().grace_ms

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
        chosen = known_plan(catalog, plan)
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
            await lock_account(connection, account_id)
            row = await current(connection, account_id)
            await start(connection, row, chosen, subscription, new, catalog.currency, now_ms)
            return await finish(connection, row, "subscribe", actor, now_ms, {"from": row.plan, "to": plan})

    async def change(
        self,
        account_id: str,
        plan: str,
        *,
        now_ms: int,
        at_end: bool | None = None,
        terms: Mapping[str, object] | None = None,
        prorate: bool = True,
        actor: str = "system",
    ) -> Change:
        """Move the account to another plan: to a larger one at once, to a smaller one at the end of what is paid;
        ``at_end`` says otherwise. What is left of the old plan's price is credited, if ``prorate``. To the plan that
        it is on: takes back what was to come.

        Raises AccountNotFound, BadRequest (plan, missing terms, a trial that the account has had, an end that never
        comes), StoreUnavailable.
        """
        await self._notice(account_id, now_ms)
        catalog = self._catalog()
        chosen = known_plan(catalog, plan)
        async with self._database.write() as connection:
            await lock_account(connection, account_id)
            row = await current(connection, account_id)
            subscription = subscription_of(row)
            usable = subscription.status.usable
            ends_ms = covered_until_ms(subscription)
            if usable and row.plan == plan:
                if not subscription.cancel_at_period_end and subscription.next_plan is None:
                    return Change(account_of(row), now_ms, 0)
                await move(connection, row, replace(subscription, cancel_at_period_end=False, next_plan=None))
                return Change(await finish(connection, row, "resume", actor, now_ms, {"plan": plan}), now_ms, 0)
            if is_trial(catalog, chosen) and await _had_trial(connection, catalog, account_id):
                raise BadRequest("trial_used", f"The account has had its {chosen.label}.", param="plan")
            if at_end is None:
                at_end = ends_ms > 0 and self._is_downgrade(subscription, chosen)
            if usable and at_end:
                moved = self._leaving(subscription, chosen, ends_ms)
                await self._leave_at_end(connection, row, moved, now_ms)
                detail = {"from": row.plan, "to": plan}
                return Change(await finish(connection, row, "change", actor, now_ms, detail), ends_ms, 0)
            credit = 0
            if usable and prorate:
                credit = await credit_rest(connection, row, catalog, now_ms)
            started, new = begin(catalog, chosen, subscription_id=new_id(), now_ms=now_ms, terms=terms)
            await start(connection, row, chosen, started, new, catalog.currency, now_ms)
            detail = {"from": row.plan, "to": plan, "credit": credit}
            return Change(await finish(connection, row, "change", actor, now_ms, detail), now_ms, credit)

    def _is_downgrade(self, subscription: Subscription, chosen: Plan) -> bool:
        plan = self._catalog().plans.get(subscription.plan)
        return plan is not None and is_downgrade(plan, chosen, subscription.terms)

    def _leaving(self, subscription: Subscription, chosen: Plan, ends_ms: int) -> Subscription:
        """Raises BadRequest when there is no end to wait for, or no terms could be given there."""
        if ends_ms == 0:
            raise BadRequest("invalid_end", "This plan has no end to wait for: change now.", param="at_end")
        begin(self._catalog(), chosen, subscription_id=subscription.id, now_ms=ends_ms)
        return replace(subscription, cancel_at_period_end=False, next_plan=chosen.name)

    async def turn(self, account_id: str, *, now_ms: int, taken: Taken | None = None) -> Turned:
        """Do what is due at ``now_ms``. ``taken`` is what Redis knows of the grants: see ``rolling``.

        Any number of callers at once: the first one writes, the others find it done. Raises AccountNotFound,
        StoreUnavailable.
        """
        async with self._database.write() as connection:
            await lock_account(connection, account_id)
            row = await current(connection, account_id)
            catalog = self._catalog()
            decision = decide(catalog, subscription_of(row), now_ms)
            turned = await apply(connection, row, decision, catalog, now_ms, taken)
            if turned.outcome != "stay":
                await finish(connection, row, turned.outcome, "clock", now_ms, {"from": row.plan, "to": turned.to})
            if row.trial_ends_at_ms and turned.outcome in ("fallback", "ended"):
                await raise_alert(connection, _trial_expired(catalog, row, turned, now_ms))
            return turned

    def rolling(self) -> tuple[str, ...]:
        """The wallets of which some plan carries the rest over: a turn asks Redis what calls have taken of them."""
        plans = self._catalog().plans.values()
        return tuple(sorted({wallet for plan in plans for wallet in plan.rollover}))

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
            active = subscription.status is SubscriptionStatus.ACTIVE
            if plan is None or not (due and active and goes_on(plan, subscription)):
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

    async def due_ahead(self, *, now_ms: int, limit: int = 100, skip: int = 0) -> tuple[str, ...]:
        """Accounts that used their running period, whose next one starts within a day and has no grants yet."""
        by_itself = [plan.name for plan in self._catalog().plans.values() if plan.renews == "by_itself"]
        query = (
            select(subscriptions.c.account_id)
            .join(accounts, accounts.c.id == subscriptions.c.account_id)
            .where(
                subscriptions.c.ended_at_ms == 0,
                subscriptions.c.granted_until_ms > now_ms,
                subscriptions.c.granted_until_ms <= now_ms + AHEAD_MS,
                subscriptions.c.granted_until_ms == subscriptions.c.period_ends_at_ms,
                subscriptions.c.status == SubscriptionStatus.ACTIVE.value,
                or_(
                    and_(
                        subscriptions.c.plan.in_(by_itself),
                        subscriptions.c.cancel_at_period_end == 0,
                        subscriptions.c.next_plan.is_(None),
                    ),
                    subscriptions.c.paid_until_ms > subscriptions.c.period_ends_at_ms,
                ),
                accounts.c.charged_at_ms >= subscriptions.c.period_starts_at_ms,
                subscriptions.c.period_ends_at_ms - subscriptions.c.period_starts_at_ms >= AHEAD_PERIOD_MIN_MS,
            )
            .order_by(subscriptions.c.granted_until_ms, subscriptions.c.id)
            .limit(limit)
            .offset(skip)
        )
        async with self._database.read() as connection:
            return tuple((await connection.execute(query)).scalars())

    async def begun_ahead(self, *, now_ms: int, limit: int = 100, skip: int = 0) -> tuple[str, ...]:
        """Accounts in a period that was granted ahead, whose turn nobody has noticed yet."""
        query = (
            select(subscriptions.c.account_id)
            .where(
                subscriptions.c.ended_at_ms == 0,
                subscriptions.c.granted_until_ms > now_ms,
                subscriptions.c.granted_until_ms > subscriptions.c.period_ends_at_ms,
                subscriptions.c.period_ends_at_ms <= now_ms,
            )
            .order_by(subscriptions.c.period_ends_at_ms, subscriptions.c.id)
            .limit(limit)
            .offset(skip)
        )
        async with self._database.read() as connection:
            return tuple((await connection.execute(query)).scalars())

    async def over(self, *, now_ms: int, limit: int = 100, skip: int = 0) -> tuple[str, ...]:
        """Accounts whose period is over and nobody has noticed, as far as somebody must: what ends, changes or waits
        for a payment is shown and told so, and overage that was used is due. What renews by itself waits for a call."""
        catalog = self._catalog()
        by_itself = [plan.name for plan in catalog.plans.values() if plan.renews == "by_itself"]
        billed = [plan.name for plan in catalog.plans.values() if plan.overage]
        here = subscriptions.c
        waits = and_(here.status == SubscriptionStatus.PAST_DUE.value, here.paid_until_ms <= here.period_ends_at_ms)
        leaves = or_(here.cancel_at_period_end == 1, here.next_plan.is_not(None))
        query = (
            select(here.account_id)
            .join(accounts, accounts.c.id == here.account_id)
            .where(
                here.ended_at_ms == 0,
                here.granted_until_ms <= now_ms,
                here.period_ends_at_ms > 0,
                here.status.in_([status.value for status in SubscriptionStatus if status.usable]),
                or_(~waits, leaves, here.period_ends_at_ms <= now_ms - catalog.grace_ms),
                or_(
                    here.plan.not_in(by_itself),
                    leaves,
                    and_(here.plan.in_(billed), accounts.c.charged_at_ms >= here.period_starts_at_ms),
                ),
            )
            .order_by(here.granted_until_ms, here.id)
            .limit(limit)
            .offset(skip)
        )
        async with self._database.read() as connection:
            return tuple((await connection.execute(query)).scalars())

    async def _notice(self, account_id: str, now_ms: int) -> None:
        """What is due at this instant is done first, whether or not somebody noticed it."""
        async with self._database.read() as connection:
            row = await current(connection, account_id)
        if not isinstance(decide(self._catalog(), subscription_of(row), now_ms), Stay):
            await self.turn(account_id, now_ms=now_ms)

    async def cancel(
        self, account_id: str, *, now_ms: int, immediately: bool = False, actor: str = "system"
    ) -> Account:
        """Let the subscription end with what is paid of it, or at once; a next period's grants that were inserted ahead
        are taken back. What has ended already stays as it is.

        Raises AccountNotFound, StoreUnavailable.
        """
        await self._notice(account_id, now_ms)
        async with self._database.write() as connection:
            await lock_account(connection, account_id)
            row = await current(connection, account_id)
            subscription = subscription_of(row)
            if not subscription.status.usable:
                return account_of(row)
            if immediately:
                await close_plan(connection, account_id, row.subscription_id, now_ms)
                catalog = self._catalog()
                turned = await apply(connection, row, end_now(catalog, subscription, now_ms), catalog, now_ms)
                return await finish(connection, row, "cancel", actor, now_ms, {"from": row.plan, "to": turned.to})
            moved = replace(subscription, cancel_at_period_end=True, next_plan=None)
            await self._leave_at_end(connection, row, moved, now_ms)
            return await finish(connection, row, "cancel", actor, now_ms, {"from": row.plan})

    async def resume(self, account_id: str, *, now_ms: int, actor: str = "system") -> Account:
        """Take back a cancellation, or a change of plan, that has not come yet; without one nothing changes.

        Raises AccountNotFound, Conflict (the subscription has ended), StoreUnavailable.
        """
        await self._notice(account_id, now_ms)
        async with self._database.write() as connection:
            await lock_account(connection, account_id)
            row = await current(connection, account_id)
            subscription = subscription_of(row)
            if not subscription.status.usable:
                raise Conflict("The subscription has ended: subscribe again.", param="account")
            if not subscription.cancel_at_period_end and subscription.next_plan is None:
                return account_of(row)
            await move(connection, row, replace(subscription, cancel_at_period_end=False, next_plan=None))
            return await finish(connection, row, "resume", actor, now_ms, {"plan": row.plan})

    async def _leave_at_end(self, connection: AsyncConnection, row: Row[Any], moved: Subscription, now_ms: int) -> None:
        """Write a subscription that will leave its plan: what was granted ahead is taken back, unless it is paid."""
        paid = row.paid_until_ms > row.period_ends_at_ms
        if not paid:
            await take_back_ahead(connection, row.id, row, now_ms)
        await move(connection, row, moved, keeps_ahead=paid)

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
                paid_until_ms=self._paid_until(subscription, ends_at_ms),
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
            return await finish(connection, row, "extend", actor, now_ms, {"from_ms": old_ms, "to_ms": ends_at_ms})

    def _paid_until(self, subscription: Subscription, ends_at_ms: int) -> int:
        """What is paid for moves along with a period's end."""
        beyond_ms = subscription.paid_until_ms - subscription.period_ends_at_ms
        return ends_at_ms + max(beyond_ms, 0) if subscription.paid_until_ms else 0


def _trial_expired(catalog: Catalog, row: Row[Any], turned: Turned, now_ms: int) -> NewAlert:
    ended_ms = row.trial_ends_at_ms
    detail = tidings.trial_expired(catalog, row.plan, ended_at_ms=ended_ms, following=turned.to)
    return NewAlert(row.id, TRIAL_EXPIRED, trial_key(subscription_of(row)), detail, now_ms)


async def _had_trial(connection: AsyncConnection, catalog: Catalog, account_id: str) -> bool:
    """Whether it is on one, or was left on one, or a trial has granted something: a subscription that went on from its
    trial to another plan is that other plan's now."""
    mine = (subscriptions.c.account_id == account_id, subscriptions.c.trial_ends_at_ms > 0)
    if (await connection.execute(select(subscriptions.c.id).where(*mine).limit(1))).first() is not None:
        return True
    trials = [plan.name for plan in catalog.plans.values() if is_trial(catalog, plan)]
    keyed = or_(*(grants.c.key.contains(f":{name}:", autoescape=True) for name in trials))
    ours = ~grants.c.key.startswith(BY_HAND)  # an operator's key may name a plan, too
    granted = select(grants.c.number).where(grants.c.account_id == account_id, keyed, ours).limit(1)
    return (await connection.execute(granted)).first() is not None
