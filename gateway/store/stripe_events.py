"""Stripe's events: each taken once, in one transaction with all that it changes.

Rules
1. An event's row and its effects are one transaction: what was not committed never happened, and may come again.
2. One event at a time per installation (its row is locked): what one learns, the next one knows.
3. An event that is kept goes on by itself when what it waits for becomes known, or when an operator lets it.

Not here: signatures and JSON (``billing.stripe``), and what each kind does (``stripe_effects``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.agreements import Known
from gateway.domain.payments import Payment
from gateway.domain.plans import Catalog
from gateway.domain.stripe import Event, fact_json, fact_of
from gateway.errors import BadRequest, Conflict, NotFound
from gateway.store.agreements import known_of, of_account
from gateway.store.common import Page, lock_account, page_of, page_size, record, storable
from gateway.store.database import Database
from gateway.store.payments import find
from gateway.store.schema import installation, stripe_customers, stripe_events
from gateway.store.stripe_effects import Keep, Work, act, concerned, link, owner_of

DONE, KEPT, IGNORED, FAILED = "done", "kept", "ignored", "failed"
RESUMED_MAX: Final = 500  # events that one event lets go on

Held = Mapping[str, Mapping[int, int]]  # by account: what open holds have of each grant number


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of an event. ``changed``: the accounts whose Redis must learn of it; ``counted``: (kind, outcome) of
    payments; ``resumed``: the kept events that went on because of it."""

    id: str
    state: str
    why: str = ""
    changed: tuple[str, ...] = ()
    counted: tuple[tuple[str, str], ...] = ()
    resumed: tuple[str, ...] = ()
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class StoredEvent:
    event: Event
    account_id: str | None
    state: str
    why: str
    waits_for: str | None
    received_at_ms: int


class StripeEvents:
    """Events as they come, and as an operator sees them. ``catalog`` gives what is for sale now."""

    def __init__(self, database: Database, catalog: Callable[[], Catalog]) -> None:
        self._database = database
        self._catalog = catalog

    async def take(self, event: Event, *, livemode: bool, now_ms: int, held: Held | None = None) -> Taken:
        """Take an event that was proven to be Stripe's. One that was taken before changes nothing.

        ``livemode`` is the mode of our own key; a refund leaves what is ``held``. Raises StoreUnavailable.
        """
        async with self._database.write() as connection:
            await _one_at_a_time(connection)
            row = await _row(connection, event.id)
            if row is not None and row.state != FAILED:
                return Taken(event.id, row.state, row.why, is_new=False)
            return await self._taken(Work(connection, self._catalog(), now_ms, livemode, held=held or {}), event)

    async def event(self, event_id: str) -> StoredEvent:
        """Raises NotFound, StoreUnavailable."""
        async with self._database.read() as connection:
            row = await _row(connection, event_id) if storable(event_id) else None
        if row is None:
            raise NotFound("There is no such event.", param="event")
        return stored_of(row)

    async def retry(
        self, event: Event, *, livemode: bool, accept: bool, now_ms: int, actor: str, held: Held | None = None
    ) -> Taken:
        """Let a kept or failed event try again, as given here. ``accept``: its amount is right, whatever the price.

        Raises NotFound, Conflict (it was taken), StoreUnavailable.
        """
        async with self._database.write() as connection:
            await _one_at_a_time(connection)
            await _waiting(connection, event.id)
            facts = update(stripe_events).where(stripe_events.c.id == event.id).values(facts=fact_json(event.fact))
            await connection.execute(facts)
            work = Work(connection, self._catalog(), now_ms, livemode, accept, held or {})
            detail = {"event": event.id, "accept": accept}
            await record(connection, "stripe_retry", account_id=None, actor=actor, now_ms=now_ms, detail=detail)
            return await self._taken(work, event)

    async def ignore(self, event_id: str, *, reason: str, now_ms: int, actor: str) -> Taken:
        """Put a kept or failed event aside for good. Raises NotFound, Conflict (it was taken), StoreUnavailable."""
        async with self._database.write() as connection:
            await _waiting(connection, event_id)
            values = {"state": IGNORED, "why": reason or "by hand", "waits_for": None, "changed_at_ms": now_ms}
            await connection.execute(update(stripe_events).where(stripe_events.c.id == event_id).values(**values))
            detail = {"event": event_id, "reason": reason}
            await record(connection, "stripe_ignore", account_id=None, actor=actor, now_ms=now_ms, detail=detail)
            return Taken(event_id, IGNORED, reason)

    async def link(
        self, customer: str, account_id: str, *, livemode: bool, now_ms: int, actor: str, held: Held | None = None
    ) -> tuple[Taken, ...]:
        """Note whose customer it is, and let the events go on that waited for that; answers those.

        Raises AccountNotFound, Conflict (another account's), StoreUnavailable.
        """
        async with self._database.write() as connection:
            await _one_at_a_time(connection)
            await lock_account(connection, account_id)
            work = Work(connection, self._catalog(), now_ms, livemode, held=held or {})
            if await owner_of(connection, customer) not in (None, account_id):
                raise Conflict("This customer is linked to another account.", param="customer")
            if await link(work, customer, account_id):
                detail = {"customer": customer}
                await record(
                    connection, "stripe_link", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail
                )
            return await self._resumed(work)

    async def concerned(self, event: Event) -> str | None:
        """The account that an event will be about, so far as is known. Raises StoreUnavailable."""
        async with self._database.snapshot() as connection:
            return await concerned(connection, event)

    async def customer(self, account_id: str) -> str | None:
        """The account's customer at Stripe, the newest one. Raises StoreUnavailable."""
        query = select(stripe_customers.c.id).where(stripe_customers.c.account_id == account_id)
        newest = query.order_by(stripe_customers.c.created_at_ms.desc(), stripe_customers.c.id).limit(1)
        async with self._database.read() as connection:
            return (await connection.execute(newest)).scalar_one_or_none()

    async def customers(self) -> dict[str, str]:
        """All links: customer → account. Raises StoreUnavailable."""
        async with self._database.read() as connection:
            found = await connection.execute(select(stripe_customers.c.id, stripe_customers.c.account_id))
            return {row.id: row.account_id for row in found}

    async def agreements(self, account_id: str) -> tuple[Known, ...]:
        """The account's subscriptions at Stripe, the newest first. Raises StoreUnavailable."""
        async with self._database.snapshot() as connection:
            return await of_account(connection, account_id)

    async def agreement(self, agreement: str) -> Known | None:
        """Raises StoreUnavailable."""
        async with self._database.snapshot() as connection:
            return await known_of(connection, agreement)

    async def payment(self, refs: Sequence[str]) -> Payment | None:
        """The payment that one of Stripe's ids means. Raises StoreUnavailable."""
        async with self._database.snapshot() as connection:
            return await find(connection, refs)

    async def failed(self, event: Event, why: str, *, now_ms: int) -> None:
        """Note that an event met a bug of ours; it may come again. Raises StoreUnavailable."""
        async with self._database.write() as connection:
            if await _row(connection, event.id) is None:
                await _store(connection, event, FAILED, why, None, None, now_ms)

    async def list(
        self, *, states: Sequence[str] = (), cursor: str | None = None, limit: int = 100
    ) -> Page[StoredEvent]:
        """Events, the newest first by Stripe's clock. Raises BadRequest (cursor), StoreUnavailable."""
        size = page_size(limit)
        at, event_id = stripe_events.c.created_at_ms, stripe_events.c.id
        query = select(stripe_events).order_by(at.desc(), event_id.desc()).limit(size + 1)
        if states:
            query = query.where(stripe_events.c.state.in_(states))
        if cursor is not None:
            last_ms, _, last = cursor.partition(":")
            if not last_ms.isdecimal() or not storable(last) or len(last_ms) > 18:
                raise BadRequest("invalid_cursor", "This cursor is none of ours.", param="cursor")
            query = query.where((at < int(last_ms)) | ((at == int(last_ms)) & (event_id < last)))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return page_of(rows, size, stored_of, lambda row: f"{row.created_at_ms}:{row.id}")

    async def _taken(self, work: Work, event: Event) -> Taken:
        """Take it, and then whatever waited for what it taught."""
        state, why = await _try(work, event)
        resumed = await self._resumed(work)
        return Taken(
            event.id,
            state,
            why,
            changed=tuple(dict.fromkeys(work.changed)),
            counted=tuple(work.counted),
            resumed=tuple(each.id for each in resumed),
        )

    async def _resumed(self, work: Work) -> tuple[Taken, ...]:
        done: list[Taken] = []
        while work.learned and len(done) < RESUMED_MAX:
            learned, work.learned = work.learned, []
            waiting = select(stripe_events).where(stripe_events.c.state == KEPT, stripe_events.c.waits_for.in_(learned))
            order = (stripe_events.c.created_at_ms, stripe_events.c.id)
            for row in (await work.connection.execute(waiting.order_by(*order).limit(RESUMED_MAX))).all():
                state, why = await _try(work, stored_of(row).event)
                done.append(Taken(row.id, state, why, changed=tuple(dict.fromkeys(work.changed))))
        return tuple(done)


async def _try(work: Work, event: Event) -> tuple[str, str]:
    """Do what the event says, or keep it; either way its row says so."""
    account_id: str | None = None
    try:
        async with work.connection.begin_nested():
            account_id, why = await act(work, event)
        state, waits_for = (IGNORED if account_id is None else DONE), None
    except Keep as keep:
        state, why, waits_for = KEPT, keep.why, keep.waits_for
        if keep.kind:
            work.counted.append((keep.kind, "kept"))
    except BadRequest as error:  # terms that are missing, a plan that is gone
        state, why, waits_for = KEPT, error.code, None
    await _store(work.connection, event, state, why, account_id, waits_for, work.now_ms)
    return state, why


async def _one_at_a_time(connection: AsyncConnection) -> None:
    await connection.execute(select(installation.c.id).with_for_update())


async def _row(connection: AsyncConnection, event_id: str) -> Row[Any] | None:
    found = await connection.execute(select(stripe_events).where(stripe_events.c.id == event_id))
    return found.one_or_none()


async def _waiting(connection: AsyncConnection, event_id: str) -> Row[Any]:
    row = await _row(connection, event_id) if storable(event_id) else None
    if row is None:
        raise NotFound("There is no such event.", param="event")
    if row.state not in (KEPT, FAILED):
        raise Conflict(f"The event is {row.state} already.", param="event")
    return row


async def _store(
    connection: AsyncConnection,
    event: Event,
    state: str,
    why: str,
    account_id: str | None,
    waits_for: str | None,
    now_ms: int,
) -> None:
    """The event's row as it is now; of one that is kept it is the only trace."""
    values: dict[str, Any] = {"state": state, "why": why, "waits_for": waits_for, "changed_at_ms": now_ms}
    if account_id is not None:
        values["account_id"] = account_id
    if await _row(connection, event.id) is not None:
        await connection.execute(update(stripe_events).where(stripe_events.c.id == event.id).values(**values))
        return
    await connection.execute(
        insert(stripe_events).values(
            id=event.id,
            type=event.type,
            facts=fact_json(event.fact),
            livemode=int(event.livemode),
            created_at_ms=event.created_at_ms,
            received_at_ms=now_ms,
            **values,
        )
    )


def stored_of(row: Row[Any]) -> StoredEvent:
    event = Event(row.id, row.type, bool(row.livemode), row.created_at_ms, fact_of(row.facts))
    return StoredEvent(event, row.account_id, row.state, row.why, row.waits_for, row.received_at_ms)
