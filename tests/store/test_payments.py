"""A payment grants once and is taken back once, and the books agree at every step."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal

import pytest

from gateway.domain.accounts import Account, GrantState
from gateway.domain.payments import Payment, PaymentState, merged
from gateway.domain.plans import Package, PackageGrant
from gateway.errors import Conflict, NotFound
from gateway.store.store import Store
from tests.store.conftest import Place
from tests.support import catalogs, stores
from tests.support.stores import DAY_MS, NOW_MS, charge

GROWTH = Package(
    "growth",
    "Growth",
    Decimal(18),
    (PackageGrant("tokens", 2_000_000), PackageGrant("tokens", 200_000, "bonus", 365 * 86_400)),
)
CATALOG = catalogs.catalog(catalogs.trial(), packages={"growth": GROWTH})


@pytest.fixture
async def store(place: Place, clock: stores.Clock) -> AsyncIterator[Store]:
    async with stores.opened(place.url, place.folder, catalog=CATALOG, clock=clock) as opened:
        yield opened


@pytest.fixture
async def account(store: Store) -> Account:
    return await store.accounts.create("Acme", now_ms=NOW_MS)


async def bought(store: Store, account: Account) -> list[GrantState]:
    return [grant for grant in await store.grants.list(account.id) if grant.source in ("package", "bonus")]


async def assert_balanced(store: Store, account: Account) -> None:
    [audited] = [each async for each in store.ledger.audit(account.id)]
    assert audited.differences == ()


async def test_a_package_is_given_once_per_payment(store: Store, account: Account) -> None:
    first = await store.payments.give(account.id, GROWTH, now_ms=NOW_MS, ref="order 7", actor="cli")
    again = await store.payments.give(account.id, GROWTH, now_ms=NOW_MS + 1, ref="order 7", actor="cli")
    assert (first.is_new, again.is_new) == (True, False)
    assert (again.payment, again.grants) == (first.payment, first.grants)
    seen = [(each.amount, each.source, each.priority, each.expires_at_ms) for each in await bought(store, account)]
    assert seen == [(2_000_000, "package", 60, 0), (200_000, "bonus", 50, NOW_MS + 365 * DAY_MS)]
    await store.payments.give(account.id, GROWTH, now_ms=NOW_MS, actor="cli")
    await store.payments.give(account.id, GROWTH, now_ms=NOW_MS, actor="cli")
    assert len(await bought(store, account)) == 6
    assert len((await store.payments.list(account.id)).items) == 3
    await assert_balanced(store, account)


async def test_a_payment_for_one_account_buys_nothing_for_another(store: Store, account: Account) -> None:
    other = await store.accounts.create("Other", now_ms=NOW_MS)
    await store.payments.give(account.id, GROWTH, now_ms=NOW_MS, ref="order 7", actor="cli")
    with pytest.raises(Conflict, match="something else"):
        await store.payments.give(other.id, GROWTH, now_ms=NOW_MS, ref="order 7", actor="cli")
    assert await bought(store, other) == []


async def test_a_refund_takes_back_what_is_left_and_never_what_was_used(store: Store, account: Account) -> None:
    given = await store.payments.give(account.id, GROWTH, now_ms=NOW_MS, actor="cli")
    package, bonus = given.grants
    await store.writer.commit([charge(account, (package.number, 1_500_000))])
    for _ in range(2):
        done = await store.payments.refund(given.payment.id, now_ms=NOW_MS + 5, actor="cli")
        assert (done.state, done.refunded) == (PaymentState.REFUNDED, 1800)
        after = await bought(store, account)
        assert [(each.amount, each.used, each.expires_at_ms) for each in after] == [
            (1_500_000, 1_500_000, NOW_MS + 5),
            (0, 0, NOW_MS + 5),
        ]
        await assert_balanced(store, account)
    assert bonus.number == package.number + 1


async def test_a_refund_leaves_what_open_holds_have_and_takes_it_when_it_is_told_again(
    store: Store, account: Account
) -> None:
    given = await store.payments.give(account.id, GROWTH, now_ms=NOW_MS, ref="order 7", actor="cli")
    package, bonus = given.grants
    held = {package.number: 1_500_000, bonus.number: 1}
    part = {"refunded": 900, "now_ms": NOW_MS, "actor": "cli"}
    await store.payments.refund(given.payment.id, held=held, **part)  # type: ignore[arg-type]
    assert [each.amount for each in await bought(store, account)] == [1_500_000, 100_000]
    await store.payments.give(account.id, GROWTH, now_ms=NOW_MS, ref="order 7", actor="cli")  # no refund: takes nothing
    assert [each.amount for each in await bought(store, account)] == [1_500_000, 100_000]
    await store.payments.refund(given.payment.id, held={package.number: 7}, **part)  # type: ignore[arg-type]
    assert [each.amount for each in await bought(store, account)] == [1_000_000, 100_000]
    await store.payments.refund(given.payment.id, held={package.number: 7}, now_ms=NOW_MS, actor="cli")
    assert [each.amount for each in await bought(store, account)] == [7, 0]
    await assert_balanced(store, account)


async def test_a_part_refunded_takes_back_that_part_and_the_rest_comes_later(store: Store, account: Account) -> None:
    given = await store.payments.give(account.id, GROWTH, now_ms=NOW_MS, actor="cli")
    for refunded, left in ((600, [1_333_334, 133_334]), (900, [1_000_000, 100_000]), (600, [1_000_000, 100_000])):
        done = await store.payments.refund(given.payment.id, refunded=refunded, now_ms=NOW_MS, actor="cli")
        assert done.state is PaymentState.PAID
        assert [each.amount for each in await bought(store, account)] == left
        await assert_balanced(store, account)


async def test_what_was_not_paid_is_not_refunded(store: Store, account: Account) -> None:
    with pytest.raises(NotFound):
        await store.payments.refund("nothing", now_ms=NOW_MS, actor="cli")
    given = await store.payments.give(account.id, GROWTH, now_ms=NOW_MS, actor="cli")
    for refunded in (0, -1, 1801):
        with pytest.raises(Conflict):
            await store.payments.refund(given.payment.id, refunded=refunded, now_ms=NOW_MS, actor="cli")


async def test_payments_are_listed_newest_first_page_by_page(store: Store, account: Account) -> None:
    ids = [(await store.payments.give(account.id, GROWTH, now_ms=NOW_MS, actor="cli")).payment.id for _ in range(5)]
    page = await store.payments.list(account.id, limit=3)
    rest = await store.payments.list(limit=3, cursor=page.next)
    assert [each.id for each in (*page.items, *rest.items)] == ids[::-1]
    assert rest.next is None


def test_what_is_told_of_a_payment_adds_up_to_the_same_in_every_order() -> None:
    base = Payment("p", "a", "stripe", "in_1", "plan", "pro", 3000, "usd", PaymentState.PENDING, created_at_ms=9)
    told = [
        replace(base, state=PaymentState.FAILED, created_at_ms=5),
        replace(base, state=PaymentState.PAID, paid_at_ms=8, intent="pi_1"),
        replace(base, refunded=1000),
        replace(base, refunded=3000),
        replace(base, agreement="sub_1", starts_at_ms=3, ends_at_ms=4),
    ]
    ends = set()
    for order in itertools.permutations([*told, told[1]]):
        known = base
        for each in order:
            known = merged(known, each)
        ends.add(known)
    assert ends == {
        replace(
            base, state=PaymentState.REFUNDED, refunded=3000, paid_at_ms=8, intent="pi_1", agreement="sub_1",
            starts_at_ms=3, ends_at_ms=4, created_at_ms=5,
        )
    }  # fmt: skip
