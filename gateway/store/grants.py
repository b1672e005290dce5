"""Grants: amounts put into wallets, and taken back. Each in one transaction with its ledger entries and its push.

Rules
1. A grant's key is unique in its account: what was granted once is not granted again, whoever tries.
2. Numbers are dense per account, in the order of insertion.
3. Nothing used is taken back: a grant's amount never falls below what charges took of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.accounts import GrantState
from gateway.domain.grants import BY_HAND, PRIORITY, NewGrant, burn_key, is_open
from gateway.domain.ledger import Entry, Kind
from gateway.domain.units import AMOUNT_MAX
from gateway.errors import BadRequest, Conflict, NotFound
from gateway.store.common import changed, lock_account, new_id, record
from gateway.store.database import Database
from gateway.store.members import member, raise_budget
from gateway.store.schema import accounts, grants, ledger


@dataclass(frozen=True, slots=True)
class Adjusted:
    """What an adjustment did: the amount that it really moved, and the wallet's balance after it."""

    amount: int
    balance: int


class Grants:
    """Grants by hand: support, gifts, packages."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self,
        account_id: str,
        *,
        wallet: str,
        amount: int,
        now_ms: int,
        source: str = "gift",
        key: str | None = None,
        starts_at_ms: int = 0,
        expires_at_ms: int = 0,
        priority: int | None = None,
        user_id: str | None = None,
        reason: str = "",
        actor: str = "system",
    ) -> GrantState:
        """Put an amount into a wallet; for a user, whose budget in this meter it raises. The same ``key`` again answers
        the grant that is there and changes nothing; for another amount or wallet it is a conflict.

        Raises AccountNotFound, NotFound (user), BadRequest (amount), Conflict, StoreUnavailable.
        """
        _check_amount(amount)
        burns = PRIORITY.get(source, PRIORITY["gift"]) if priority is None else priority
        own = f"{BY_HAND}{key or new_id()}"
        grant = NewGrant(own, wallet, amount, source, burns, starts_at_ms or now_ms, expires_at_ms)
        async with self._database.write() as connection:
            account = await lock_account(connection, account_id)
            made = await insert_grants(connection, account, (grant,), now_ms=now_ms, reason=reason)
            if made:
                await _check_room(connection, account_id, wallet, max(now_ms, grant.starts_at_ms))
                await changed(connection, account_id, "grant", now_ms)
                detail: dict[str, Any] = {
                    "number": made[0].number,
                    "wallet": wallet,
                    "amount": amount,
                    "source": source,
                    "reason": reason,
                }
                if user_id is not None:
                    await member(connection, "user", user_id, account_id)
                    raised = await raise_budget(
                        connection, account_id, user_id, meter=wallet, amount=amount, ends_at_ms=expires_at_ms,
                        now_ms=now_ms,
                    )  # fmt: skip
                    detail |= {"user": user_id, "budget_raised": raised}
                await record(connection, "grant", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)
                return made[0]
            return await _same(connection, account_id, grant)

    async def adjust(
        self,
        account_id: str,
        *,
        wallet: str,
        amount: int,
        now_ms: int,
        expires_at_ms: int = 0,
        held: Mapping[int, int] | None = None,
        reason: str = "",
        actor: str = "system",
    ) -> Adjusted:
        """Raise (+) or lower (−) what a wallet has. Raising adds a grant that ends at ``expires_at_ms``; lowering takes
        from the open grants, the first to burn first, at most what charges and open holds (``held``, by number) left.

        Raises AccountNotFound, BadRequest (amount 0), StoreUnavailable.
        """
        _check_amount(abs(amount))
        async with self._database.write() as connection:
            account = await lock_account(connection, account_id)
            if amount > 0:
                source = "adjustment"
                new = NewGrant(new_id(), wallet, amount, source, PRIORITY[source], now_ms, expires_at_ms)
                await insert_grants(connection, account, (new,), now_ms=now_ms, reason=reason)
                await _check_room(connection, account_id, wallet, now_ms)
                moved = amount
            else:
                open_ = await open_grants(connection, account_id, now_ms, wallet=wallet)
                moved = -await withdraw(connection, account_id, open_, -amount, now_ms=now_ms, reason=reason, held=held)
            await changed(connection, account_id, "adjust", now_ms)
            left = await open_grants(connection, account_id, now_ms, wallet=wallet)
            balance = sum(grant.amount - grant.used for grant in left)
            detail = {"wallet": wallet, "asked": amount, "moved": moved, "reason": reason}
            detail |= {"before": {"balance": balance - moved}, "after": {"balance": balance}}
            await record(connection, "adjust", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)
        return Adjusted(moved, balance)

    async def revoke(
        self,
        account_id: str,
        number: int,
        *,
        now_ms: int,
        held: Mapping[int, int] | None = None,
        reason: str = "",
        actor: str = "system",
    ) -> GrantState:
        """End a grant now and take back what is left of it, but for what open holds have (``held``, by number).

        Raises AccountNotFound, NotFound, StoreUnavailable.
        """
        async with self._database.write() as connection:
            await lock_account(connection, account_id)
            mine = (grants.c.account_id == account_id, grants.c.number == number)
            row = (await connection.execute(select(grants).where(*mine))).one_or_none()
            if row is None:
                raise NotFound
            grant = grant_of(row)
            taken = await withdraw(
                connection, account_id, (grant,), grant.amount, now_ms=now_ms, reason=reason, held=held
            )
            await end_grants(connection, account_id, (grant,), now_ms)
            await changed(connection, account_id, "revoke", now_ms)
            detail = {"number": number, "taken": taken, "reason": reason}
            await record(connection, "revoke", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)
            return grant_of((await connection.execute(select(grants).where(*mine))).one())

    async def used(self, account_id: str, wallet: str) -> dict[int, int]:
        """What was ever used of a wallet, by grant. Raises StoreUnavailable."""
        query = select(grants.c.number, grants.c.used).where(
            grants.c.account_id == account_id, grants.c.wallet == wallet
        )
        async with self._database.read() as connection:
            return {row.number: row.used for row in await connection.execute(query)}

    async def list(self, account_id: str, *, open_at_ms: int | None = None) -> tuple[GrantState, ...]:
        """The account's grants in the order they were made; ``open_at_ms``: only those open then."""
        async with self._database.read() as connection:
            found = await connection.execute(
                select(grants).where(grants.c.account_id == account_id).order_by(grants.c.number)
            )
            states = tuple(grant_of(row) for row in found)
        return states if open_at_ms is None else tuple(grant for grant in states if is_open(grant, open_at_ms))


def grant_of(row: Row[Any]) -> GrantState:
    return GrantState(
        id=row.id,
        number=row.number,
        wallet=row.wallet,
        amount=row.amount,
        source=row.source,
        priority=row.priority,
        starts_at_ms=row.starts_at_ms,
        expires_at_ms=row.expires_at_ms,
        used=row.used,
        unit_price=row.unit_price or "",
        charged_at_ms=row.charged_at_ms,
    )


async def insert_grants(
    connection: AsyncConnection, account: Row[Any], new: Sequence[NewGrant], *, now_ms: int, reason: str = ""
) -> list[GrantState]:
    """Insert those whose key the account does not have yet, with their ledger entries; answers them.

    ``account`` is the locked row. Whoever calls it twice in one transaction passes the newer count by locking again.
    """
    if not new:
        return []
    wanted = [grant.key for grant in new]
    found = await connection.execute(
        select(grants.c.key).where(grants.c.account_id == account.id, grants.c.key.in_(wanted))
    )
    known = set(found.scalars())
    made: list[GrantState] = []
    rows: list[dict[str, Any]] = []
    for grant in new:
        if grant.key in known:
            continue
        known.add(grant.key)
        number = account.grants_made + len(made) + 1
        state = GrantState(
            new_id(), number, grant.wallet, grant.amount, grant.source, grant.priority,
            grant.starts_at_ms, grant.expires_at_ms, 0,
        )  # fmt: skip
        made.append(state)
        rows.append(
            {
                "account_id": account.id,
                "number": number,
                "id": state.id,
                "wallet": grant.wallet,
                "amount": grant.amount,
                "source": grant.source,
                "priority": grant.priority,
                "starts_at_ms": grant.starts_at_ms,
                "expires_at_ms": grant.expires_at_ms,
                "key": grant.key,
                "unit_price": grant.unit_price or None,
                "reason": reason,
                "created_at_ms": now_ms,
            }
        )
    if rows:
        await connection.execute(insert(grants), rows)
        last = account.grants_made + len(rows)
        await connection.execute(update(accounts).where(accounts.c.id == account.id).values(grants_made=last))
        entries = [Entry(grant.wallet, grant.number, Kind.GRANTED, grant.amount) for grant in made if grant.amount]
        await post(connection, account.id, entries, now_ms=now_ms, reason=reason)
    return made


async def open_grants(
    connection: AsyncConnection, account_id: str, now_ms: int, *, wallet: str | None = None
) -> tuple[GrantState, ...]:
    """The account's open grants in burn order."""
    query = select(grants).where(
        grants.c.account_id == account_id,
        grants.c.starts_at_ms <= now_ms,
        or_(grants.c.expires_at_ms == 0, grants.c.expires_at_ms > now_ms),
    )
    if wallet is not None:
        query = query.where(grants.c.wallet == wallet)
    return tuple(sorted((grant_of(row) for row in await connection.execute(query)), key=burn_key))


async def withdraw(
    connection: AsyncConnection,
    account_id: str,
    from_grants: Iterable[GrantState],
    amount: int,
    *,
    now_ms: int,
    reason: str,
    held: Mapping[int, int] | None = None,
) -> int:
    """Take up to ``amount`` of what is left of these grants, in their order; answers how much it was. ``held`` is what
    open holds have of each grant number: it is not left."""
    left, entries = amount, []
    for grant in from_grants:
        part = min(left, max(grant.amount - grant.used - (held or {}).get(grant.number, 0), 0))
        if part == 0:
            continue
        left -= part
        entries.append(Entry(grant.wallet, grant.number, Kind.WITHDRAWN, part))
        await connection.execute(
            update(grants)
            .where(grants.c.account_id == account_id, grants.c.number == grant.number)
            .values(amount=grants.c.amount - part)
        )
    await post(connection, account_id, entries, now_ms=now_ms, reason=reason)
    return amount - left


async def end_grants(connection: AsyncConnection, account_id: str, ended: Iterable[GrantState], now_ms: int) -> None:
    """End these grants now; what they have left is lost, what charges still take of them is booked on them."""
    numbers = [grant.number for grant in ended]
    if numbers:
        await connection.execute(
            update(grants)
            .where(grants.c.account_id == account_id, grants.c.number.in_(numbers))
            .values(expires_at_ms=now_ms)
        )


async def post(
    connection: AsyncConnection, account_id: str, entries: Iterable[Entry], *, now_ms: int, reason: str = ""
) -> None:
    """Append ledger entries."""
    rows = entry_values(account_id, entries, now_ms=now_ms, reason=reason)
    if rows:
        await connection.execute(insert(ledger), rows)


def entry_values(account_id: str, entries: Iterable[Entry], *, now_ms: int, reason: str = "") -> list[dict[str, Any]]:
    """Ledger entries as rows."""
    return [
        {
            "account_id": account_id, "wallet": entry.wallet, "grant_number": entry.grant, "kind": entry.kind.value,
            "debit": entry.debit.value, "credit": entry.credit.value, "amount": entry.amount,
            "seq_first": entry.seq_first, "seq_last": entry.seq_last, "reason": reason, "created_at_ms": now_ms,
        }
        for entry in entries
    ]  # fmt: skip


async def _same(connection: AsyncConnection, account_id: str, asked: NewGrant) -> GrantState:
    """The grant that has the key already. Raises Conflict when it was not what is asked for now."""
    found = await connection.execute(select(grants).where(grants.c.account_id == account_id, grants.c.key == asked.key))
    there = grant_of(found.one())
    given = (  # what is left of it may be withdrawn since
        select(ledger.c.amount)
        .where(
            ledger.c.account_id == account_id,
            ledger.c.grant_number == there.number,
            ledger.c.kind == Kind.GRANTED.value,
        )
        .order_by(ledger.c.id)
        .limit(1)
    )
    amount = (await connection.execute(given)).scalar_one()
    if (there.wallet, there.source, amount) != (asked.wallet, asked.source, asked.amount):
        raise Conflict("This key was used for another grant.", param="key")
    return there


async def _check_room(connection: AsyncConnection, account_id: str, wallet: str, at_ms: int) -> None:
    """What is open at a time adds up to a number that the engine can say: it would refuse the whole account."""
    if sum(grant.amount for grant in await open_grants(connection, account_id, at_ms, wallet=wallet)) > AMOUNT_MAX:
        raise BadRequest("invalid_amount", "The wallet would have more than 2^53 steps.", param="amount")


def _check_amount(amount: int) -> None:
    if not 0 < amount <= AMOUNT_MAX:
        raise BadRequest("invalid_amount", "The amount must be more than 0 and below 2^53 steps.", param="amount")
