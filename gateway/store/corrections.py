"""The used amount of a running period, moved by hand: a line of usage of its own, like every other change of it.

Rules
1. Nothing that was charged is edited. A correction is an entry among the account's charges, negative where it gives
   back, with the next seq: balances, ledger and Redis follow from it as from any charge.
2. It falls on what the plan granted for the running period; packages and gifts are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.accounts import Account, GrantState
from gateway.domain.charges import ChargeRow
from gateway.domain.grants import BESIDE_ALLOWANCE, burn_order, is_open
from gateway.domain.ledger import charge_entries
from gateway.domain.usage import Basis, Usage
from gateway.errors import BadRequest
from gateway.store.accounts import account_of, current
from gateway.store.common import changed, lock_account, new_id, record
from gateway.store.database import Database
from gateway.store.grants import grant_of, post
from gateway.store.schema import accounts, grants, usage
from gateway.store.usage_rows import COLUMNS, line_text, row_of

ROUTE = "correction"


class Corrections:
    """Support's acts on what was used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set_used(
        self, account_id: str, *, wallet: str, used: int, now_ms: int, reason: str = "", actor: str = "system"
    ) -> Account:
        """Make ``used`` steps the used amount of what the plan granted for the running period. A charge that is still
        on its way here is added to it.

        Raises AccountNotFound, BadRequest (more than was granted, or nothing was), StoreUnavailable.
        """
        async with self._database.write() as connection:
            row = await lock_account(connection, account_id)
            account = account_of(await current(connection, account_id))
            period = await _of_period(connection, account, wallet, now_ms)
            before, granted = sum(grant.used for grant in period), sum(grant.amount for grant in period)
            if not 0 <= used <= granted:
                raise BadRequest("invalid_amount", "The plan has granted less than this for the period.", param="used")
            lines = _lines(period, used - before)
            if not lines:
                return account
            seq = row.seq + 1
            await connection.execute(insert(usage).values(_usage(account, wallet, period, lines, seq, now_ms)))
            for number, amount in lines:
                mine = (grants.c.account_id == account_id, grants.c.number == number)
                await connection.execute(update(grants).where(*mine).values(used=grants.c.used + amount))
            entries = charge_entries(
                ((wallet, number, amount) for number, amount in lines), seq_first=seq, seq_last=seq
            )
            await post(connection, account_id, entries, now_ms=now_ms, reason=reason)
            moved = {"seq": seq, "charged_at_ms": max(row.charged_at_ms, now_ms)}
            await connection.execute(update(accounts).where(accounts.c.id == account_id).values(**moved))
            await changed(connection, account_id, "set_used", now_ms)
            detail = {"wallet": wallet, "before": {"used": before}, "after": {"used": used}, "reason": reason}
            await record(connection, "set_used", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)
            return account_of(await current(connection, account_id))


async def _of_period(connection: AsyncConnection, account: Account, wallet: str, now_ms: int) -> tuple[GrantState, ...]:
    """What the plan granted for the running period, the first to burn first."""
    subscription = account.subscription
    found = await connection.execute(
        select(grants).where(
            grants.c.account_id == account.id,
            grants.c.wallet == wallet,
            grants.c.source.not_in(BESIDE_ALLOWANCE),
            grants.c.key.startswith(f"{subscription.id}:", autoescape=True)
            | grants.c.key.startswith(f"once:{subscription.plan}:", autoescape=True),
        )
    )
    return burn_order([grant for grant in map(grant_of, found) if is_open(grant, now_ms)], wallet, now_ms)


def _lines(period: Sequence[GrantState], change: int) -> list[tuple[int, int]]:
    """(grant number, amount) of a change: more burns as a call would, less comes back from what burned last."""
    lines, left = [], abs(change)
    for grant in period if change > 0 else reversed(period):
        part = min(left, max(grant.amount - grant.used, 0) if change > 0 else grant.used)
        if part:
            left -= part
            lines.append((grant.number, part if change > 0 else -part))
    return lines


def _usage(
    account: Account,
    wallet: str,
    period: Sequence[GrantState],
    lines: Sequence[tuple[int, int]],
    seq: int,
    now_ms: int,
) -> dict[str, Any]:
    """The line of usage: no call, no tokens, only the amount."""
    moved = dict(lines)
    row = ChargeRow(
        hold_id=new_id(), account_id=account.id, state="settled", created_at_ms=now_ms, ended_at_ms=now_ms,
        route=ROUTE, model=None, upstream=None, plan=account.subscription.plan, feature=ROUTE, wallet=wallet,
        card_version="", usage=Usage(), basis=Basis.COUNTED, held=0, charged=sum(moved.values()), overrun=0, lines=(),
        budgets=(), status=0, end="corrected",
    )  # fmt: skip
    left = {grant.number: grant.amount - grant.used - moved.get(grant.number, 0) for grant in period}
    texts = [line_text(number, amount, left[number], None) for number, amount in lines]
    booked = (seq, now_ms, sum(left.values()), f"[{','.join(texts)}]", "[]")
    return dict(zip(COLUMNS, row_of(row, booked), strict=True))
