"""The steps that a subscription's moves are made of, inside the caller's transaction with the account locked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.accounts import Account, Subscription
from gateway.domain.grants import BESIDE_ALLOWANCE, NewGrant, allowance, rollover_grants
from gateway.domain.ledger import Entry, Kind
from gateway.domain.plans import Catalog, Plan
from gateway.domain.turns import Changed, Decision, Ended, Fallback, NextPeriod, PastDue, Stay, Turned
from gateway.errors import BadRequest
from gateway.store.accounts import account_of, current, insert_subscription, subscription_of, subscription_values
from gateway.store.common import changed, lock_account, record
from gateway.store.grants import end_grants, grant_of, insert_grants, open_grants, post, withdraw
from gateway.store.owed import bill_overage
from gateway.store.schema import grants, subscriptions


@dataclass(frozen=True, slots=True)
class Taken:
    """What Redis knows of each grant, by number: (posted, held)."""

    grants: Mapping[int, tuple[int, int]]

    def posted(self, number: int) -> int:
        return self.grants.get(number, (0, 0))[0]

    def held(self, number: int) -> int:
        return self.grants.get(number, (0, 0))[1]


async def start(
    connection: AsyncConnection,
    row: Row[Any],
    plan: Plan,
    subscription: Subscription,
    new: Sequence[NewGrant],
    currency: str,
    now_ms: int,
) -> None:
    """A subscription takes the place of the current one, ``row``: what that one granted ends, the new grants come."""
    account = await lock_account(connection, row.id)
    await close_plan(connection, row.id, row.subscription_id, now_ms)
    left = update(subscriptions).where(subscriptions.c.id == row.subscription_id).values(ended_at_ms=now_ms)
    await connection.execute(left)
    await insert_subscription(connection, row.id, subscription, now_ms)
    await insert_grants(connection, account, new, now_ms=now_ms, reason=f"plan {plan.name}")
    await close_debts(connection, row.id, carry=plan.debt == "carry", now_ms=now_ms)
    await bill_overage(connection, row.id, currency, now_ms)


async def apply(
    connection: AsyncConnection,
    row: Row[Any],
    decision: Decision,
    catalog: Catalog,
    now_ms: int,
    taken: Taken | None = None,
) -> Turned:
    """Write what was decided about the current subscription, ``row``.

    A rest that rolls over can only be told by who knows what calls have taken of it, ``taken``: without that the
    period is left for somebody else to turn.
    """
    new: tuple[NewGrant, ...] = ()
    old_plan = catalog.plans.get(row.plan)
    rolls = old_plan is not None and old_plan.rollover and isinstance(decision, NextPeriod)
    if isinstance(decision, Stay) or (rolls and taken is None):
        return Turned("stay", row.plan, row.plan)
    match decision:
        case NextPeriod(moved, new):
            turned = Turned("next_period", row.plan, moved.plan)
        case Fallback(moved, new):
            turned = Turned("fallback", row.plan, moved.plan)
        case Changed(moved, new):
            turned = Turned("changed", row.plan, moved.plan)
        case PastDue(moved):
            turned = Turned("past_due", row.plan, moved.plan)
        case Ended(moved):
            turned = Turned("ended", row.plan, None)
    if old_plan is not None and rolls and taken is not None:
        new += await _rolled_over(connection, row, old_plan, moved, taken)
    goes_on = turned.outcome in ("next_period", "past_due")
    if not goes_on:
        await take_back_ahead(connection, row.id, row, now_ms)
    await move(connection, row, moved, keeps_ahead=goes_on)
    account = await lock_account(connection, row.id)
    await insert_grants(connection, account, new, now_ms=now_ms, reason=turned.outcome)
    await close_debts(connection, row.id, carry=old_plan is not None and old_plan.debt == "carry", now_ms=now_ms)
    await bill_overage(connection, row.id, catalog.currency, now_ms)
    return turned


async def _rolled_over(
    connection: AsyncConnection, row: Row[Any], plan: Plan, moved: Subscription, taken: Taken
) -> tuple[NewGrant, ...]:
    """The rest of the period before the one that ``moved`` is in. Of a period that nobody used it is everything."""
    bounds = {"starts_at_ms": moved.period_starts_at_ms, "ends_at_ms": moved.period_ends_at_ms}
    if moved.period_starts_at_ms > row.period_ends_at_ms:
        return rollover_grants(plan, moved.terms, moved.id, allowance(plan, moved.terms), **bounds)
    found = await connection.execute(
        select(grants).where(
            grants.c.account_id == row.id,
            grants.c.expires_at_ms == row.period_ends_at_ms,
            grants.c.starts_at_ms >= row.period_starts_at_ms,
            grants.c.source.not_in(BESIDE_ALLOWANCE),
            grants.c.key.startswith(f"{row.subscription_id}:", autoescape=True),
        )
    )
    unused: Counter[str] = Counter()
    for grant in found:
        unused[grant.wallet] += grant.amount - max(grant.used, taken.posted(grant.number)) - taken.held(grant.number)
    return rollover_grants(plan, moved.terms, moved.id, unused, **bounds)


def difference(before: Subscription, after: Subscription) -> dict[str, Any]:
    """What a move changed, for the audit log: each value before it and after it."""
    old, new = ({**subscription_values(each), "id": each.id} for each in (before, after))
    names = [name for name in new if old[name] != new[name]]
    return {"before": {name: old[name] for name in names}, "after": {name: new[name] for name in names}}


async def finish(
    connection: AsyncConnection, row: Row[Any], cause: str, actor: str, now_ms: int, detail: Mapping[str, Any]
) -> Account:
    """The push and the audit line of a move away from ``row``; answers the account as it is now."""
    await changed(connection, row.id, cause, now_ms)
    now = await current(connection, row.id)
    told = {**detail, **difference(subscription_of(row), subscription_of(now))}
    await record(connection, cause, account_id=row.id, actor=actor, now_ms=now_ms, detail=told)
    return account_of(now)


def known_plan(catalog: Catalog, name: str) -> Plan:
    """Raises BadRequest."""
    if name not in catalog.plans:
        raise BadRequest("unknown_plan", f"There is no plan {name}.", param="plan")
    return catalog.plans[name]


async def move(
    connection: AsyncConnection, row: Row[Any], subscription: Subscription, *, keeps_ahead: bool = False
) -> None:
    """Write where the current subscription is now. ``keeps_ahead``: what was granted ahead stays granted."""
    until_ms = subscription.period_ends_at_ms
    await connection.execute(
        update(subscriptions)
        .where(subscriptions.c.id == row.subscription_id)
        .values(
            granted_until_ms=max(row.granted_until_ms, until_ms) if keeps_ahead else until_ms,
            **subscription_values(subscription),
        )
    )


async def close_plan(connection: AsyncConnection, account_id: str, subscription_id: str, now_ms: int) -> None:
    """End what a plan granted, and the adjustments to it: whatever has an end, also support's, changed this plan.
    What was granted once for ever stays the account's."""
    found = await connection.execute(
        select(grants).where(
            grants.c.account_id == account_id,
            grants.c.expires_at_ms > now_ms,
            or_(grants.c.key.startswith(f"{subscription_id}:"), grants.c.source == "adjustment"),
        )
    )
    ended = [grant_of(row) for row in found]
    ahead = [grant for grant in ended if grant.starts_at_ms > now_ms]
    for grant in ahead:
        await withdraw(connection, account_id, (grant,), grant.amount, now_ms=now_ms, reason="plan left")
    await end_grants(connection, account_id, ended, now_ms)


async def take_back_ahead(connection: AsyncConnection, account_id: str, row: Row[Any], now_ms: int) -> None:
    """Take back the next period's grants while they have not started; they may be granted again.

    Whoever calls this moves the subscription, too.
    """
    if row.granted_until_ms <= row.period_ends_at_ms:
        return
    found = await connection.execute(
        select(grants).where(
            grants.c.account_id == account_id,
            grants.c.starts_at_ms >= row.period_ends_at_ms,
            grants.c.starts_at_ms > now_ms,
            grants.c.key.startswith(f"{row.subscription_id}:"),
        )
    )
    ahead = [grant_of(each) for each in found]
    for grant in ahead:
        await withdraw(connection, account_id, (grant,), grant.amount, now_ms=now_ms, reason="not renewed")
    await end_grants(connection, account_id, ahead, now_ms)
    await connection.execute(
        update(grants)
        .where(grants.c.account_id == account_id, grants.c.number.in_([grant.number for grant in ahead]))
        .values(key=None)
    )


async def close_debts(connection: AsyncConnection, account_id: str, *, carry: bool, now_ms: int) -> None:
    """What ended grants still owe is forgiven, or carried to the wallet's open grants as far as they reach."""
    found = await connection.execute(
        select(grants).where(
            grants.c.account_id == account_id,
            grants.c.expires_at_ms > 0,
            grants.c.expires_at_ms <= now_ms,
            grants.c.used > grants.c.amount + grants.c.written_off,
        )
    )
    for row in found.all():
        owed = row.used - row.amount - row.written_off
        entries = await _carried(connection, row, owed, now_ms) if carry else [_entry(row, Kind.FORGIVEN, owed)]
        closed = sum(entry.amount for entry in entries if entry.grant == row.number)
        if closed:
            await connection.execute(
                update(grants)
                .where(grants.c.account_id == account_id, grants.c.number == row.number)
                .values(written_off=grants.c.written_off + closed)
            )
            await post(connection, account_id, entries, now_ms=now_ms, reason="debt")


async def _carried(connection: AsyncConnection, row: Row[Any], owed: int, now_ms: int) -> Sequence[Entry]:
    entries: list[Entry] = []
    left = owed
    for grant in await open_grants(connection, row.account_id, now_ms, wallet=row.wallet):
        part = min(left, max(grant.amount - grant.used, 0))
        if part:
            left -= part
            entries.append(Entry(grant.wallet, grant.number, Kind.CARRIED_IN, part))
            await connection.execute(
                update(grants)
                .where(grants.c.account_id == row.account_id, grants.c.number == grant.number)
                .values(amount=grants.c.amount - part)
            )
    if left < owed:
        entries.append(_entry(row, Kind.CARRIED_OUT, owed - left))
    return entries


def _entry(row: Row[Any], kind: Kind, amount: int) -> Entry:
    return Entry(row.wallet, row.number, kind, amount)
