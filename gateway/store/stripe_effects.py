"""What each kind of Stripe's events does, inside the transaction that takes it.

Rules
1. What cannot be believed or placed is kept for an operator and grants nothing (``Keep``): the other mode, an unknown
   customer or payment, a price that is not ours, an amount that is not the price.
2. Accounts are told of, never guessed: by the customer's link, else by our id in the metadata that we wrote.
3. Nothing here depends on what came before: each effect merges a fact into what is known, and acts on all of it.

Not here: which events come twice, or wait (``stripe_events``), and what a subscription does (``agreements``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain import tidings
from gateway.domain.agreements import Known
from gateway.domain.alerts import PAYMENT_FAILED
from gateway.domain.payments import Payment, PaymentState, due_for_offer, offers, periods_of
from gateway.domain.plans import Catalog
from gateway.domain.stripe import Agreement, CheckoutDone, Event, IntentPaid, Invoice, NothingOfOurs, Refunded
from gateway.errors import AccountNotFound
from gateway.store.accounts import current
from gateway.store.agreements import follow, known_of, tell
from gateway.store.alerts import NewAlert, raise_alert
from gateway.store.common import changed, lock_account, new_id, record, storable
from gateway.store.payments import find, grant_package, note, take_back
from gateway.store.schema import accounts, stripe_customers

ACTOR: Final = "stripe"


class Keep(Exception):
    """The event is kept for an operator; nothing of it is written."""

    def __init__(self, why: str, *, waits_for: str | None = None, kind: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.waits_for = waits_for
        self.kind = kind


@dataclass(slots=True)
class Work:
    """One transaction's surroundings, and what it has learned and changed so far. ``held``: by account, what open holds
    have of each grant number."""

    connection: AsyncConnection
    catalog: Catalog
    now_ms: int
    livemode: bool
    accept: bool = False
    held: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    learned: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    counted: list[tuple[str, str]] = field(default_factory=list)


async def act(work: Work, event: Event) -> tuple[str | None, str]:
    """The account it was about (None: nothing of ours) and a word on it. Raises Keep."""
    fact = event.fact
    if isinstance(fact, NothingOfOurs):
        return None, fact.why
    if event.livemode != work.livemode:
        raise Keep("other_mode")
    match fact:
        case CheckoutDone():
            return await _account(work, fact.customer, fact.account), ""
        case Invoice():
            return await _invoice(work, event, fact)
        case Agreement():
            return await _agreement(work, event, fact)
        case IntentPaid():
            return await _intent(work, event, fact)
        case Refunded():
            return await _refunded(work, fact)


async def _invoice(work: Work, event: Event, fact: Invoice) -> tuple[str | None, str]:
    if fact.agreement is None:
        return None, "not_of_a_subscription"
    account_id = await _account(work, fact.customer, fact.account, kind="plan")
    sold = offers(work.catalog)
    lines = [line for line in fact.lines if line.price in sold and sold[line.price].kind == "plan"]
    whole = [line for line in lines if not line.is_proration]
    if not whole:
        raise Keep("prorated" if lines else "unknown_price", kind="plan")
    line = max(whole, key=lambda each: (each.ends_at_ms, each.price))
    offer = sold[line.price]
    row = await current(work.connection, account_id)
    due = due_for_offer(offer, work.catalog, row.terms if row.plan == offer.name else {})
    if fact.is_paid:
        _check_amount(work, fact.currency, (line.amount, min(line.amount, fact.amount)), due, kind="plan")
    payment = await note(
        work.connection,
        Payment(
            id=new_id(),
            account_id=account_id,
            provider=ACTOR,
            provider_ref=fact.id,
            kind="plan",
            what=offer.name,
            amount=fact.amount,
            currency=fact.currency,
            state=PaymentState.PAID if fact.is_paid else PaymentState.FAILED,
            created_at_ms=fact.created_at_ms,
            livemode=event.livemode,
            intent=fact.intent,
            agreement=fact.agreement,
            starts_at_ms=line.starts_at_ms,
            ends_at_ms=line.ends_at_ms,
            periods=periods_of(offer, work.catalog),
            paid_at_ms=fact.paid_at_ms if fact.is_paid else 0,
        ),
        now_ms=work.now_ms,
    )
    if payment.account_id != account_id:
        raise Keep("payment_of_another_account", kind="plan")
    work.learned += [ref for ref in (fact.id, fact.intent) if ref is not None]
    work.counted.append(("plan", "paid" if fact.is_paid else "failed"))
    if payment.state is PaymentState.FAILED:
        await _alert_failed(work, account_id, payment)
    known = Known(fact.agreement, account_id, None, offer.name, "", False, 0, 0, 0)
    await _follow(work, await _told(work, known, kind="plan"))
    return account_id, ""


async def _agreement(work: Work, event: Event, fact: Agreement) -> tuple[str | None, str]:
    offer = offers(work.catalog).get(fact.price)
    before = await known_of(work.connection, fact.id)
    if before is None and offer is None and await owner_of(work.connection, fact.customer) is None:
        return None, "price_not_sold_here"
    account_id = await _account(work, fact.customer, fact.account)
    known = await _told(
        work,
        Known(
            id=fact.id,
            account_id=account_id,
            subscription_id=None,
            plan=offer.name if offer is not None else before.plan if before is not None else "",
            status=fact.status,
            cancel_at_period_end=fact.cancel_at_period_end,
            seen_at_ms=event.created_at_ms,
            started_at_ms=fact.started_at_ms,
            ended_at_ms=fact.ended_at_ms,
        ),
    )
    await _follow(work, known)
    return account_id, ""


async def _intent(work: Work, event: Event, fact: IntentPaid) -> tuple[str | None, str]:
    if fact.package is None:
        return None, "not_for_a_package"
    account_id = await _account(work, fact.customer, fact.account, kind="package")
    package = work.catalog.packages.get(fact.package)
    if package is None:
        raise Keep("unknown_package", kind="package")
    sold = offers(work.catalog).values()
    offer = next((each for each in sold if (each.kind, each.name) == ("package", package.name)), None)
    due = None if offer is None else due_for_offer(offer, work.catalog, {})
    _check_amount(work, fact.currency, (fact.amount,), due, kind="package")
    payment = await note(
        work.connection,
        Payment(
            id=new_id(),
            account_id=account_id,
            provider=ACTOR,
            provider_ref=fact.id,
            kind="package",
            what=package.name,
            amount=fact.amount,
            currency=fact.currency,
            state=PaymentState.PAID,
            created_at_ms=event.created_at_ms,
            livemode=event.livemode,
            intent=fact.id,
            paid_at_ms=event.created_at_ms,
        ),
        now_ms=work.now_ms,
    )
    if payment.account_id != account_id:
        raise Keep("payment_of_another_account", kind="package")
    work.learned.append(fact.id)
    work.counted.append(("package", "paid"))
    if await grant_package(work.connection, package, payment, now_ms=work.now_ms):
        await changed(work.connection, account_id, "package", work.now_ms)
        detail = {"package": package.name, "payment": payment.id}
        await record(work.connection, "package", account_id=account_id, actor=ACTOR, now_ms=work.now_ms, detail=detail)
        work.changed.append(account_id)
    return account_id, ""


async def _refunded(work: Work, fact: Refunded) -> tuple[str | None, str]:
    refs = [ref for ref in (fact.invoice, fact.intent) if ref is not None]
    payment = await find(work.connection, refs) if refs else None
    if payment is None:
        raise Keep("unknown_payment", waits_for=refs[0] if refs else None)
    if payment.provider != ACTOR:
        raise Keep("unknown_payment")
    await lock_account(work.connection, payment.account_id)
    refunded = min(fact.refunded, payment.amount)
    now = await note(work.connection, replace(payment, refunded=refunded), now_ms=work.now_ms)
    work.counted.append((payment.kind, "refunded"))
    if now.kind == "package":
        held = work.held.get(now.account_id)
        if await take_back(work.connection, now, held=held, now_ms=work.now_ms):
            await changed(work.connection, now.account_id, "refund", work.now_ms)
            work.changed.append(now.account_id)
    elif now.agreement is not None:
        known = await known_of(work.connection, now.agreement)
        if known is not None:
            await _follow(work, known)
    detail = {"payment": now.id, "refunded": now.refunded, "of": now.amount}
    await record(work.connection, "refund", account_id=now.account_id, actor=ACTOR, now_ms=work.now_ms, detail=detail)
    return now.account_id, ""


async def _told(work: Work, told: Known, *, kind: str = "") -> Known:
    """What is known now. Raises Keep: its payments are another account's, which nobody has locked."""
    known = await tell(work.connection, told)
    if known.account_id != told.account_id:
        raise Keep("subscription_of_another_account", kind=kind)
    return known


async def _follow(work: Work, known: Known) -> None:
    held = work.held.get(known.account_id)
    if await follow(work.connection, work.catalog, known, held=held, now_ms=work.now_ms, actor=ACTOR):
        work.changed.append(known.account_id)


async def _alert_failed(work: Work, account_id: str, payment: Payment) -> None:
    about = payment.provider_ref or payment.id
    detail = tidings.payment_failed(work.catalog, payment.what, about)
    await raise_alert(work.connection, NewAlert(account_id, PAYMENT_FAILED, about, detail, work.now_ms))


def _check_amount(work: Work, currency: str, amounts: Iterable[int], due: int | None, *, kind: str) -> None:
    """Raises Keep unless each amount is what is due, in our currency; an operator may have said that it is right."""
    if work.accept:
        return
    if currency != work.catalog.currency:
        raise Keep("other_currency", kind=kind)
    if due is None:
        raise Keep("no_price", kind=kind)
    if any(amount != due for amount in amounts):
        raise Keep("other_amount", kind=kind)


async def _account(work: Work, customer: str | None, named: str | None, *, kind: str = "") -> str:
    """The account, locked: by its link, else by our id in the metadata, which makes the link (rule 4). Raises Keep."""
    linked = await owner_of(work.connection, customer)
    if linked is not None and named not in (None, linked):
        raise Keep("customer_of_another_account", kind=kind)
    account_id = linked or named
    if account_id is None:
        raise Keep("unknown_customer", waits_for=customer, kind=kind)
    try:
        if not storable(account_id):
            raise AccountNotFound
        await lock_account(work.connection, account_id)
    except AccountNotFound:
        raise Keep("unknown_account", kind=kind) from None
    if customer is not None:
        await link(work, customer, account_id)
    return account_id


async def concerned(connection: AsyncConnection, event: Event) -> str | None:
    """The account that an event is about, as far as one can tell before it is taken; whatever waited for the event is
    about the same one."""
    match event.fact:
        case NothingOfOurs():
            return None
        case Refunded() as fact:
            payment = await find(connection, [ref for ref in (fact.invoice, fact.intent) if ref is not None])
            return None if payment is None else payment.account_id
        case fact:
            return await owner_of(connection, fact.customer) or await _named(connection, fact.account)


async def _named(connection: AsyncConnection, account_id: str | None) -> str | None:
    if account_id is None or not storable(account_id):
        return None
    there = await connection.execute(select(accounts.c.id).where(accounts.c.id == account_id))
    return there.scalar_one_or_none()


async def owner_of(connection: AsyncConnection, customer: str | None) -> str | None:
    query = select(stripe_customers.c.account_id).where(stripe_customers.c.id == customer)
    return None if customer is None else (await connection.execute(query)).scalar_one_or_none()


async def link(work: Work, customer: str, account_id: str) -> bool:
    """Make the link; whether it is new."""
    if await owner_of(work.connection, customer) is not None:
        return False
    row = {"id": customer, "account_id": account_id, "created_at_ms": work.now_ms}
    await work.connection.execute(insert(stripe_customers).values(**row))
    work.learned.append(customer)
    return True
