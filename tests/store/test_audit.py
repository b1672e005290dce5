"""The audit finds every way in which the books could disagree, and nothing where they agree."""

from __future__ import annotations

import pytest

from gateway.domain.accounts import Account
from gateway.domain.ledger import Kind, balance
from gateway.domain.periods import Period
from gateway.store import audit
from gateway.store.common import new_id
from gateway.store.store import Store
from tests.store.conftest import Place
from tests.support.stores import NOW_MS, charge

pytestmark = pytest.mark.own_database  # these tests tamper


async def _busy(store: Store) -> Account:
    """An account with several flushes, a corrected lapse, a free call and a budget."""
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    team = await store.members.create_team(account.id, "Core", now_ms=NOW_MS)
    await store.members.set_budget("team", team.id, meter="tokens", amount=10**6, period=Period("month"), now_ms=NOW_MS)
    hold = new_id()
    await store.writer.commit([charge(account, (1, 5)), charge(account, (1, 6), budgets=((1, NOW_MS, 6),))])
    await store.writer.commit([charge(account)])
    await store.writer.commit([charge(account, (1, 7), hold_id=hold, state="lapsed")])
    await store.writer.commit([charge(account, (1, 3), hold_id=hold), charge(account, (1, 2))])
    await store.writer.commit([charge(account)])
    return account


async def _differences(store: Store, account: Account) -> list[str]:
    [audited] = [each async for each in store.ledger.audit(account.id)]
    assert audited.account_id == account.id
    return [difference.what for difference in audited.differences]


async def _tamper(store: Store, place: Place, statement: str) -> None:
    """What the triggers refuse: done with the triggers off."""
    async with store.database.write() as connection:
        if place.backend == "sqlite":
            for table in ("usage", "ledger"):
                for action in ("update", "delete"):
                    await connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {table}_append_only_{action}")
        else:
            await connection.exec_driver_sql("ALTER TABLE usage DISABLE TRIGGER ALL")
            await connection.exec_driver_sql("ALTER TABLE ledger DISABLE TRIGGER ALL")
        await connection.exec_driver_sql(statement)


async def test_where_everything_agrees_there_is_no_difference(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    account = await _busy(store)
    assert await _differences(store, account) == []
    monkeypatch.setattr(audit, "ROWS_AT_ONCE", 1)  # every page boundary
    [audited] = [each async for each in store.ledger.audit(account.id)]
    assert (audited.charges, audited.differences) == (8, ())


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE grants SET used = used + 1", ["used of grant 1, by lines", "grant 1, by entries"]),
        ("UPDATE grants SET amount = amount + 1", ["grant 1, by entries"]),
        ("UPDATE grants SET written_off = 1", ["grant 1, by entries"]),
        ("UPDATE accounts SET seq = seq + 1", ["last seq"]),
        ("UPDATE budget_uses SET used = used + 1", [f"used of budget 1 from {NOW_MS}"]),
        ("DELETE FROM budget_uses", [f"used of budget 1 from {NOW_MS}"]),
        ("UPDATE usage SET charged = 99 WHERE seq = 1", ["charge of seq 1"]),
        ("UPDATE ledger SET amount = 99 WHERE seq_first = 1", ["charged on grant 1, seqs 1-2", "grant 1, by entries"]),
        ("DELETE FROM ledger WHERE seq_first = 4", ["entries of seq 4", "grant 1, by entries"]),
        ("DELETE FROM ledger WHERE seq_first = 5 AND kind = 'charged'",
         ["charged on grant 1, seqs 5-7", "grant 1, by entries"]),
        ("DELETE FROM ledger", ["entries of seq 1", "entries of seq 2", "entries of seq 4", "entries of seq 5",
                                "entries of seq 6", "entries of seq 7", "grant 1, by entries"]),
        ("DELETE FROM usage WHERE seq = 3", ["seq"]),  # the free one: nothing else can tell
        ("DELETE FROM usage WHERE seq = 8", ["last seq"]),
        ("DELETE FROM grants", ["grant 1"]),
        ("UPDATE usage SET lines = '[[1,6,1]]', charged = 6 WHERE seq = 1",
         ["charged on grant 1, seqs 1-2", "used of grant 1, by lines"]),
    ],
)  # fmt: skip
async def test_whatever_is_tampered_with_is_found(store: Store, place: Place, statement: str, found: list[str]) -> None:
    account = await _busy(store)
    await _tamper(store, place, statement)
    assert await _differences(store, account) == found


@pytest.mark.parametrize("accounts_at_once", [1, 2, 500])
@pytest.mark.parametrize("rows_at_once", [1, 3, 2000])
async def test_an_audit_of_all_goes_through_every_account(
    store: Store, place: Place, monkeypatch: pytest.MonkeyPatch, accounts_at_once: int, rows_at_once: int
) -> None:
    monkeypatch.setattr(audit, "ACCOUNTS_AT_ONCE", accounts_at_once)
    monkeypatch.setattr(audit, "ROWS_AT_ONCE", rows_at_once)
    accounts = [await _busy(store) for _ in range(3)]
    await store.writer.commit([charge("nobody", (1, 5))])
    await _tamper(store, place, f"UPDATE grants SET used = 0 WHERE account_id = '{accounts[1].id}'")
    audited = [each async for each in store.ledger.audit()]
    assert [each.account_id for each in audited] == [*(account.id for account in accounts), "nobody"]
    assert [len(each.differences) for each in audited] == [0, 2, 0, 1]


async def test_an_account_that_is_not_there_has_nothing_to_compare(store: Store) -> None:
    assert [each.differences async for each in store.ledger.audit(new_id())] == [()]


async def test_transactions_page_and_filter_by_wallet(store: Store) -> None:
    account = await _busy(store)
    await store.grants.add(account.id, wallet="credits", amount=9, now_ms=NOW_MS)
    seen, cursor = [], None
    while True:
        page = await store.ledger.transactions(account.id, cursor=cursor, limit=2)
        seen += page.items
        cursor = page.next
        if cursor is None:
            break
    assert [entry.kind for entry in seen] == ["granted", "reversed", "charged", "charged", "charged", "granted"]
    assert [(e.seq_first, e.seq_last, e.amount) for e in seen[1:5]] == [(5, 7, 7), (5, 7, 5), (4, 4, 7), (1, 2, 11)]
    assert [e.amount for e in (await store.ledger.transactions(account.id, wallet="credits")).items] == [9]
    balances = balance((Kind(entry.kind), entry.amount) for entry in seen if entry.grant == 1)
    assert (balances.amount, balances.used) == (6_000_000, 16)
