"""Usage records: lists by account and time, by month, by who and what; sums that are right over any rows."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from gateway.domain.accounts import Account
from gateway.domain.periods import month_span
from gateway.domain.usage import Basis, Usage
from gateway.errors import BadRequest
from gateway.store.common import new_id
from gateway.store.schema import usage
from gateway.store.store import Store
from gateway.store.usage import Filter, UsageLog
from gateway.store.usage_rows import COLUMNS, SELDOM
from tests.store.conftest import Place
from tests.support.stores import DAY_MS, NOW_MS, charge

NOVEMBER = "2025-11"
DECEMBER_MS = NOW_MS + 15 * DAY_MS


async def _filled(store: Store) -> Account:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    await store.writer.commit(
        [
            charge(account, (1, i), at_ms=NOW_MS + i, job=f"j{i % 2}", user_id=f"u{i % 3}", feature="f", model="m")
            for i in range(1, 10)
        ]
    )
    await store.writer.commit([charge(account, (1, 100), at_ms=DECEMBER_MS, job="j0", feature="g", model=None)])
    return account


async def test_a_record_tells_everything_about_its_call(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    row = charge(
        account, (1, 600), usage=Usage(1, 2, 3, 4, 5, 6, 7), basis=Basis.COUNTED, held=700, overrun=3, key_id=new_id(),
        team_id=new_id(), user_id=new_id(), job="job-7", job_type="review", metadata={"pr": 5, "tags": ["a", None]},
    )  # fmt: skip
    await store.writer.commit([row])
    [record] = (await store.usage.list(account.id)).items
    for name in ("hold_id", "account_id", "state", "created_at_ms", "route", "model", "upstream", "plan", "feature",
                 "wallet", "card_version", "usage", "basis", "held", "charged", "overrun", "status", "end", "key_id",
                 "team_id", "user_id", "job", "job_type", "metadata"):  # fmt: skip
        assert getattr(record, name) == getattr(row, name), name
    assert (record.at_ms, record.month, record.balance_after) == (NOW_MS, NOVEMBER, 6_000_000 - 600)


def test_rows_are_in_the_order_of_the_table() -> None:
    assert tuple(column.name for column in usage.c) == COLUMNS


async def test_lists_are_newest_first_in_pages(store: Store) -> None:
    account = await _filled(store)
    seen, cursor = [], None
    while True:
        page = await store.usage.list(account.id, cursor=cursor, limit=4)
        seen += [record.charged for record in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert seen == [100, 9, 8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (Filter(month=NOVEMBER), 9),
        (Filter(month="2025-12"), 1),
        (Filter(month="2025-10"), 0),
        (Filter(month="2025-13"), 0),
        (Filter(month="9999-12"), 0),
        (Filter(month=NOVEMBER, from_ms=NOW_MS + 4), 6),
        (Filter(from_ms=NOW_MS + 3, to_ms=NOW_MS + 6), 3),  # half-open
        (Filter(job="j0"), 5),
        (Filter(job="j0", user_id="u1"), 1),
        (Filter(feature="g"), 1),
        (Filter(model="m", month=NOVEMBER, job="j1", user_id="u0"), 2),
        (Filter(wallet="credits"), 0),
        (Filter(job="\0"), 0),
    ],
)
async def test_lists_are_filtered(store: Store, which: Filter, found: int) -> None:
    account = await _filled(store)
    assert len((await store.usage.list(account.id, which)).items) == found
    assert sum(total.calls for total in await store.usage.totals(account.id, which)) == found


async def test_a_month_has_its_first_millisecond_and_not_the_next_months(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    first_ms, next_ms = month_span(NOVEMBER)
    edges = (first_ms - 1, first_ms, next_ms - 1, next_ms)
    await store.writer.commit([charge(account, (1, 1), at_ms=at_ms) for at_ms in edges])
    page = await store.usage.list(account.id, Filter(month=NOVEMBER))
    assert [record.at_ms for record in page.items] == [next_ms - 1, first_ms]


async def test_pages_lose_none_of_a_moments_records(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    await store.writer.commit([charge(account, (1, amount)) for amount in range(1, 6)])
    seen, cursor = list[int](), None
    while not seen or cursor is not None:
        page = await store.usage.list(account.id, cursor=cursor, limit=2)
        seen, cursor = [*seen, *(record.charged for record in page.items)], page.next
    assert seen == [5, 4, 3, 2, 1]


def test_what_is_left_out_of_a_row_is_what_the_table_says_by_itself() -> None:
    for name, value in SELDOM.items():
        default = usage.c[name].server_default
        said = None if default is None else str(getattr(default, "arg", "")).strip("'")
        assert said == (None if value is None else str(value)), name


async def test_nobody_sees_anothers_usage(store: Store) -> None:
    account = await _filled(store)
    other = await store.accounts.create("Other", now_ms=NOW_MS)
    [record] = (await store.usage.list(account.id, limit=1)).items
    assert (await store.usage.list(other.id)).items == ()
    assert await store.usage.of_hold(other.id, record.hold_id) == ()
    assert await store.usage.of_hold(account.id, record.hold_id) == (record,)
    assert await store.usage.of_hold(account.id, "\0") == ()


async def test_totals_per_group(store: Store) -> None:
    account = await _filled(store)
    [total] = await store.usage.totals(account.id)
    assert (total.wallet, total.calls, total.charged, total.usage.input) == ("tokens", 10, 145, 145)
    assert (total.first_at_ms, total.last_at_ms) == (NOW_MS + 1, DECEMBER_MS)
    by_month = await store.usage.totals(account.id, by=("month", "job"))
    assert [(each.group, each.calls, each.charged) for each in by_month] == [
        (("2025-11", "j0"), 4, 20),
        (("2025-11", "j1"), 5, 25),
        (("2025-12", "j0"), 1, 100),
    ]
    by_day = await store.usage.totals(account.id, by=("day", "feature"))
    assert [(each.group, each.charged) for each in by_day] == [(("2025-11-20", "f"), 45), (("2025-12-05", "g"), 100)]
    with pytest.raises(BadRequest):
        await store.usage.totals(account.id, by=("metadata",))


async def test_what_was_charged_since_is_the_sum_of_those_records_whenever_one_asks(store: Store) -> None:
    """Asked after every commit of a stormy life, and by one who never asked before."""
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    other = await store.accounts.create("Other", now_ms=NOW_MS)
    hold = new_id()
    early = charge(account, (1, 3), at_ms=NOW_MS - 1)
    commits = [
        [charge(account, (1, 5), at_ms=NOW_MS)],
        [early, charge(account, (1, 500), hold_id=hold, state="lapsed", at_ms=NOW_MS + 5)],
        [charge(other, (1, 70), at_ms=NOW_MS + 6)],
        [charge(account, (1, 40), hold_id=hold, at_ms=NOW_MS + 10)],
        [early],  # repeated
        [charge(account, (1, 9), at_ms=NOW_MS + 1), charge(account, (1, 2), at_ms=NOW_MS + 20)],
    ]
    for rows in commits:
        await store.writer.commit(rows)
        for since_ms in (NOW_MS, NOW_MS, NOW_MS + 10, NOW_MS - 1, NOW_MS):
            totals = await store.usage.totals(account.id, Filter(from_ms=since_ms))
            charged = {total.wallet: total.charged for total in totals}
            assert await store.usage.charged_since(account.id, since_ms) == charged
            assert await UsageLog(store.database).charged_since(account.id, since_ms) == charged
    assert await store.usage.charged_since(account.id, NOW_MS) == {"tokens": 56}
    assert await store.usage.charged_since(other.id, NOW_MS) == {"tokens": 70}


async def test_a_corrected_lapse_counts_once_and_in_its_months(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    hold = new_id()
    await store.writer.commit([charge(account, (1, 500), hold_id=hold, state="lapsed", at_ms=NOW_MS, waived=9)])
    await store.writer.commit([charge(account, (1, 40), hold_id=hold, at_ms=DECEMBER_MS, waived=2)])
    [total] = await store.usage.totals(account.id)
    assert (total.calls, total.charged, total.usage.input, total.waived) == (1, 40, 40, 2)
    months = await store.usage.totals(account.id, by=("month",))
    assert [(each.group, each.calls, each.charged) for each in months] == [
        (("2025-11",), 1, 500),
        (("2025-12",), 0, -460),
    ]


@pytest.mark.parametrize("cursor", ["", "x", "1", "1.", ".1", "-1.2", "1.2.3", "９.1", "9" * 50])
async def test_a_cursor_of_no_list_is_refused(store: Store, cursor: str) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    with pytest.raises(BadRequest):
        await store.usage.list(account.id, cursor=cursor)
    for act in (
        store.ledger.transactions(account.id, cursor=cursor + "x"),
        store.ledger.audit_log(cursor=cursor + "x"),
    ):
        with pytest.raises(BadRequest):
            await act


async def test_lists_by_time_use_their_index(store: Store, place: Place) -> None:
    """A6: a month is a time, too. PostgreSQL prefers to read small tables whole: there, that is forbidden for the
    question."""
    by_time = "account_id = 'a' AND at_ms >= 1 AND at_ms < 9 ORDER BY at_ms DESC, seq DESC LIMIT 10"
    async with store.database.snapshot() as connection:
        if place.backend == "postgresql":
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
            await connection.execute(text("SET LOCAL enable_sort = off"))
        explain = "EXPLAIN QUERY PLAN" if place.backend == "sqlite" else "EXPLAIN"
        rows = await connection.execute(text(f"{explain} SELECT * FROM usage WHERE {by_time}"))
    assert "ix_usage_account_id_at_ms_seq" in " ".join(str(row) for row in rows)
