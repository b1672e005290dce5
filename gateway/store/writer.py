"""The one way of charges into the database: batches, each one transaction, where SQL decides what each charge becomes.

Rules
1. The accounts' rows are locked in order, then what is known of the holds is read: two writers with the same charges
   (an owner and whoever took its outbox over) do not deadlock, and the second one finds the first one's rows.
2. What a charge becomes is ``domain.charges.steps``: none → lapsed → settled, each once, in whatever order they come.
   Each step is one row of ``usage`` with the account's next dense ``seq``.
3. Every answer has all changes of its hold, old and new: a commit whose reply was lost is simply repeated.
4. A charge that cannot be booked (no such account or grant) must not hold up the others: it goes to ``usage_rejects``,
   where the audit finds it.
5. A wallet that a batch takes below its mark is an alert of the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from sqlalchemy import BigInteger, Insert, Table, bindparam, case, func, insert, or_, select, update

from gateway.domain import tidings
from gateway.domain.alerts import LOW_BALANCE
from gateway.domain.charges import ChargeRow, Committed, Unreadable
from gateway.domain.plans import Catalog
from gateway.errors import Conflict, StoreUnavailable
from gateway.metrics import OTHER, Metrics
from gateway.store.alerts import NewAlert, alert_texts
from gateway.store.booking import TIME_MAX_MS, Account, Batch, Grant, answer_of
from gateway.store.common import among, inserting, storable, wall_clock_ms
from gateway.store.database import Database, Dialect
from gateway.store.grants import entry_values
from gateway.store.schema import accounts, budget_uses, budgets, grants, ledger, usage, usage_rejects
from gateway.store.schema_alerts import alerts
from gateway.store.script import Prepared, Script, prepare
from gateway.store.usage_rows import ALWAYS, COLUMNS, parted

BATCH_MAX: Final = 1000


class Writer:
    """Commits charges."""

    def __init__(
        self,
        database: Database,
        catalog: Callable[[], Catalog],
        *,
        now_ms: Callable[[], int] = wall_clock_ms,
        metrics: Metrics | None = None,
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._now_ms = now_ms
        self._metrics = metrics  # of the server that this runs in
        self._sql = _Statements.of(database.dialect)

    async def commit(self, rows: Sequence[ChargeRow]) -> list[Committed]:
        """Book these charges, at most ``BATCH_MAX``; the answers are in their order, one each.

        A rejected charge is answered with no changes. Raises only StoreUnavailable: perhaps booked, repeat.
        """
        if not rows:
            return []
        assert len(rows) <= BATCH_MAX, "commit in batches"
        try:
            batch, committed = await self._database.run(self._booking(rows, self._now_ms()))
        except Conflict as error:  # the same hold under two accounts in the same moment: repeated, one finds the other
            raise StoreUnavailable from error
        self._count(batch)
        return committed

    def _count(self, batch: Batch) -> None:
        """What was charged, by the source of the grants that paid. A counter only rises: what a batch takes back in all
        under a label is not told."""
        if self._metrics is None:
            return
        meters, plans = self._catalog().meters, self._catalog().plans
        for (wallet, plan, source, basis), steps in batch.charged.items():
            if steps > 0 and wallet in meters:
                labels = (wallet, plan if plan in plans else OTHER, source, basis)
                self._metrics.charged_units.add(labels, steps / meters[wallet].scale)

    async def set_aside(self, charges: Sequence[Unreadable]) -> list[Committed]:
        """Keep what cannot be read where the audit finds it, so that it does not wait for ever. The answers are as
        ``commit``'s: with no changes, unless the charge was booked before.

        Raises StoreUnavailable: perhaps kept, repeat."""
        return await self._database.run(self._setting_aside(charges, self._now_ms()))

    def _setting_aside(self, charges: Sequence[Unreadable], now_ms: int) -> Script[list[Committed]]:
        batch = Batch({})
        batch.knows((yield self._sql.known, {"holds": [charge.hold_id for charge in charges]}))
        answers = [batch.set_aside(charge, now_ms) for charge in charges]
        if batch.rejects:
            yield self._sql.reject, batch.rejects
        return answers

    def _booking(self, rows: Sequence[ChargeRow], now_ms: int) -> Script[tuple[Batch, list[Committed]]]:
        """The transaction: read what the batch needs to know, book, write what it adds."""
        batch = yield from self._read(rows)
        booked = [batch.book(row, now_ms) for row in rows]
        yield from self._write(batch, now_ms)
        return batch, [answer_of(row, known) for row, known in zip(rows, booked, strict=True)]

    def _read(self, rows: Sequence[ChargeRow]) -> Script[Batch]:
        """Lock the accounts, and read what is known of them and of the holds."""
        sql = self._sql
        ids = sorted(filter(storable, {row.account_id for row in rows}))
        holds = [row.hold_id for row in rows if storable(row.hold_id)]
        seqs = yield sql.lock, {"ids": ids}
        marks = self._catalog().alerts.low_balance
        batch = Batch({account_id: Account(account_id, seq) for account_id, seq in seqs}, marks)
        batch.knows((yield sql.known, {"holds": holds}))
        since_ms = min(TIME_MAX_MS, *(row.ended_at_ms for row in rows)) - 1
        for account_id, number, *grant in (yield sql.grants, {"ids": ids, "since_ms": since_ms}):
            batch.accounts[account_id].grants[number] = Grant(*grant)
        if not batch.has_grants(rows):  # a late charge of a grant that has ended
            for account_id, number, *grant in (yield sql.all_grants, {"ids": ids}):
                batch.accounts[account_id].grants.setdefault(number, Grant(*grant))
        if any(row.budgets for row in rows):
            for account_id, number in (yield sql.budgets, {"ids": ids}):
                batch.accounts[account_id].budgets.add(number)
        return batch

    def _write(self, batch: Batch, now_ms: int) -> Script[None]:
        """Everything that the batch adds, by table."""
        sql = self._sql
        moved = [account for account in batch.accounts.values() if account.seq > account.seq_before]
        seqs: list[dict[str, Any]] = []
        used: list[dict[str, Any]] = []
        uses: list[dict[str, Any]] = []
        entries: list[dict[str, Any]] = []
        for account in moved:
            seqs.append({"account": account.id, "last_seq": account.seq, "now_ms": now_ms})
            for number, grant in account.grants.items():
                if grant.added:
                    moved_by = {"added": grant.added, "last_ms": grant.charged_at_ms}
                    used.append({"account": account.id, "grant": number, **moved_by})
            for (number, starts_at_ms), added in account.budget_uses.items():
                uses.append({"account_id": account.id, "number": number, "starts_at_ms": starts_at_ms, "used": added})
            entries += entry_values(account.id, account.posted(), now_ms=now_ms)
        usual, others = parted(batch.usage)
        writes = (
            (sql.reject, batch.rejects), (sql.usual, usual), (sql.usage, others), (sql.seq, seqs), (sql.used, used),
            (sql.use, uses), (sql.entry, entries), (sql.alert, self._low(batch, now_ms)),
        )  # fmt: skip
        for statement, values in writes:
            if values:
                yield statement, values

    def _low(self, batch: Batch, now_ms: int) -> list[dict[str, Any]]:
        """The alerts of wallets that became low: told of exactly when the charge that did it is booked."""
        catalog = self._catalog()
        return [
            alert_texts(
                NewAlert(
                    low.account_id,
                    LOW_BALANCE,
                    f"{low.wallet}:{low.seq}",
                    tidings.low_balance(catalog, low.wallet, available=low.left, mark=low.mark),
                    now_ms,
                )
            )
            for low in batch.became_low(now_ms)
        ]

    async def seqs_after(self, account_id: str, *, older_than_ms: int, limit: int) -> tuple[tuple[str, int], ...]:
        """(account, last seq) of accounts that were ever charged, but not later than ``older_than_ms`` ago, by their
        ids: those after this one. Raises StoreUnavailable."""
        query = (
            select(accounts.c.id, accounts.c.seq)
            .where(accounts.c.id > account_id, accounts.c.seq > 0)
            .where(accounts.c.charged_at_ms <= self._now_ms() - older_than_ms)
            .order_by(accounts.c.id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return tuple((found_id, seq) for found_id, seq in await connection.execute(query))

    async def last_seqs(self, *, older_than_ms: int, newer_than_ms: int) -> tuple[tuple[str, int], ...]:
        """(account, last seq) of the charges written between ``newer_than_ms`` and ``older_than_ms`` ago: what Redis
        should have counted by now. Raises StoreUnavailable."""
        now_ms = self._now_ms()
        query = (
            select(usage.c.account_id, func.max(usage.c.seq))
            .where(usage.c.committed_at_ms > now_ms - newer_than_ms, usage.c.committed_at_ms <= now_ms - older_than_ms)
            .group_by(usage.c.account_id)
        )
        async with self._database.read() as connection:
            return tuple((account_id, seq) for account_id, seq in await connection.execute(query))


@dataclass(frozen=True, slots=True)
class _Statements:
    """What a commit runs, prepared for a dialect."""

    lock: Prepared
    known: Prepared
    grants: Prepared
    all_grants: Prepared
    budgets: Prepared
    reject: Prepared
    usual: Prepared  # of usage: with the columns that every charge needs
    usage: Prepared
    seq: Prepared
    used: Prepared
    use: Prepared
    entry: Prepared
    alert: Prepared

    @classmethod
    @cache
    def of(cls, dialect: Dialect) -> _Statements:
        g, use = grants.c, inserting(dialect, budget_uses).prefix_with("OR ROLLBACK", dialect="sqlite")
        of_accounts = among(dialect, g.account_id, "ids")
        columns = (g.account_id, g.number, g.wallet, g.amount, g.used, g.starts_at_ms, g.expires_at_ms, g.source)
        locked = (
            select(accounts.c.id, accounts.c.seq).where(among(dialect, accounts.c.id, "ids")).order_by(accounts.c.id)
        )
        known = (
            select(*(usage.c[name] for name in COLUMNS))
            .where(among(dialect, usage.c.hold_id, "holds"))
            .order_by(usage.c.account_id, usage.c.seq)
        )
        not_ended = or_(g.expires_at_ms == 0, g.expires_at_ms > bindparam("since_ms"))
        of_budgets = among(dialect, budgets.c.account_id, "ids")
        rejecting = inserting(dialect, usage_rejects).inline().on_conflict_do_nothing()
        adding = use.on_conflict_do_update(
            index_elements=["account_id", "number", "starts_at_ms"],
            set_={"used": budget_uses.c.used + use.excluded.used},
        )
        moving = update(accounts).where(accounts.c.id == bindparam("account"))
        at_ms = bindparam("last_ms", type_=BigInteger)
        latest = case((g.charged_at_ms < at_ms, at_ms), else_=g.charged_at_ms)
        using = update(grants).where(g.account_id == bindparam("account"), g.number == bindparam("grant"))
        return cls(
            lock=prepare(dialect, locked.with_for_update(key_share=True)),
            known=prepare(dialect, known),
            grants=prepare(dialect, select(*columns).where(of_accounts, not_ended)),
            all_grants=prepare(dialect, select(*columns).where(of_accounts)),
            budgets=prepare(dialect, select(budgets.c.account_id, budgets.c.number).where(of_budgets)),
            reject=prepare(dialect, rejecting, *(column.name for column in usage_rejects.c if column.name != "id")),
            usual=prepare(dialect, _appending(usage), *ALWAYS),
            usage=prepare(dialect, _appending(usage), *COLUMNS),
            seq=prepare(dialect, moving.values(seq=bindparam("last_seq"), charged_at_ms=bindparam("now_ms"))),
            used=prepare(dialect, using.values(used=g.used + bindparam("added"), charged_at_ms=latest)),
            use=prepare(dialect, adding, "account_id", "number", "starts_at_ms", "used"),
            entry=prepare(
                dialect, _appending(ledger).inline(), *(column.name for column in ledger.c if column.name != "id")
            ),
            alert=prepare(
                dialect,
                inserting(dialect, alerts).inline().on_conflict_do_nothing(),
                *(column.name for column in alerts.c if column.name != "id"),
            ),
        )


def _appending(table: Table) -> Insert:
    """SQLite: what is refused ends the whole transaction. To be able to take one statement back it would write the
    pages that many rows touch to a file of their own, before it changes them.
    Source: https://www.sqlite.org/tempfiles.html#statement_journal_files"""
    return insert(table).prefix_with("OR ROLLBACK", dialect="sqlite")
