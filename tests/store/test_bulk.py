"""Many accounts at once are the same as one by one, or nothing at all."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from gateway.store.bulk import BadRow, NewAccount, create_accounts
from gateway.store.schema import accounts, audit_log, grants, ledger, subscriptions
from gateway.store.store import Store
from tests.support import stores

MADE = ("id", "account_id", "subscription_id", "key", "detail")  # differ from one account to the next


async def rows(store: Store, account_id: str) -> dict[str, list[dict[str, object]]]:
    """All that stands of an account, without what is never the same twice."""
    found = {}
    async with store.database.read() as connection:
        for table in (accounts, subscriptions, grants, ledger, audit_log):
            column = table.c.id if table is accounts else table.c.account_id
            each = await connection.execute(select(table).where(column == account_id))
            found[table.name] = [
                {name: value for name, value in row._asdict().items() if name not in MADE} for row in each
            ]
    return found


async def test_an_account_made_with_others_is_as_one_made_alone(store: Store, clock: stores.Clock) -> None:
    new = [NewAccount("Acme", "pro", "Ops@acme.org"), NewAccount("Acme")]
    made = await create_accounts(store.database, stores.CATALOG, new, now_ms=clock.now_ms, actor="somebody")
    for row, account in zip(new, made, strict=True):
        alone = await store.accounts.create(
            row.name, now_ms=clock.now_ms, plan=row.plan, email=row.email, actor="somebody"
        )
        assert await rows(store, account.id) == await rows(store, alone.id)
        assert await store.accounts.by_ref(account.id) == account
        assert (await store.state.snapshot(account.id)).grants[0].amount == (
            await store.state.snapshot(alone.id)
        ).grants[0].amount


@pytest.mark.parametrize(
    ("bad", "index"),
    [
        (NewAccount(" "), 2),
        (NewAccount("Acme", "platinum"), 2),
        (NewAccount("Acme", external_id="first"), 2),
        (NewAccount("Acme", external_id=" taken "), 2),
    ],
)
async def test_one_bad_row_is_named_and_nothing_is_made(
    store: Store, clock: stores.Clock, bad: NewAccount, index: int
) -> None:
    await store.accounts.create("There", now_ms=clock.now_ms, external_id="taken")
    new = [NewAccount("Good", external_id="first"), NewAccount("Good too"), bad, NewAccount("", "nothing")]
    if bad.external_id is not None:
        new = new[:3]
    with pytest.raises(BadRow) as caught:
        await create_accounts(store.database, stores.CATALOG, new, now_ms=clock.now_ms, actor="somebody")
    assert caught.value.index == index
    async with store.database.read() as connection:
        for table in (accounts, subscriptions, grants, audit_log):
            assert (await connection.execute(select(func.count()).select_from(table))).scalar_one() == 1


async def test_thousands_are_audited_without_a_difference(store: Store, clock: stores.Clock) -> None:
    new = [NewAccount(f"Account {number}", "pro", external_id=f"org-{number}") for number in range(2500)]
    made = await create_accounts(store.database, stores.CATALOG, new, now_ms=clock.now_ms, actor="somebody")
    assert len({account.id for account in made}) == 2500
    for account in made[::500]:
        (audited,) = [each async for each in store.ledger.audit(account.id)]
        assert audited.differences == ()
