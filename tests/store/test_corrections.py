"""What support moves by hand: used amounts, and the budgets of users who are given something."""

from __future__ import annotations

import pytest

from gateway.domain.accounts import Account, Budget
from gateway.domain.periods import Period
from gateway.errors import BadRequest, NotFound
from gateway.store.store import Store
from tests.support.stores import DAY_MS, NOW_MS, charge

WEEK = Period("fixed", 7 * 86_400)


async def _audited(store: Store) -> None:
    async for audited in store.ledger.audit():
        assert audited.differences == ()


async def _used(store: Store, account: Account) -> list[int]:
    return [grant.used for grant in await store.grants.list(account.id)]


@pytest.mark.parametrize(("before", "used"), [(0, 700), (700, 0), (700, 200), (200, 6_000_000), (700, 700)])
async def test_the_used_amount_is_moved_by_a_line_of_usage(store: Store, before: int, used: int) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    if before:
        await store.writer.commit([charge(account, (1, before))])
    await store.corrections.set_used(
        account.id, wallet="tokens", used=used, now_ms=NOW_MS, reason="a bad batch", actor="support"
    )
    assert await _used(store, account) == [used]
    records = (await store.usage.list(account.id)).items
    assert sum(record.charged for record in records) == used
    assert (await store.state.snapshot(account.id)).seq == len(records)
    await _audited(store)
    if used != before:
        line = (await store.ledger.audit_log(account_id=account.id)).items[0]
        assert (line.action, line.detail["before"], line.detail["after"]) == (
            "set_used", {"used": before}, {"used": used},
        )  # fmt: skip


async def test_a_charge_after_a_correction_counts_as_always(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    await store.writer.commit([charge(account, (1, 500))])
    await store.corrections.set_used(account.id, wallet="tokens", used=100, now_ms=NOW_MS)
    await store.writer.commit([charge(account, (1, 50))])
    assert await _used(store, account) == [150]
    await _audited(store)


async def test_more_than_was_granted_cannot_be_used(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    await store.grants.add(account.id, wallet="tokens", amount=50, now_ms=NOW_MS, source="package")
    for used in (6_000_001, -1):
        with pytest.raises(BadRequest):
            await store.corrections.set_used(account.id, wallet="tokens", used=used, now_ms=NOW_MS)
    assert await _used(store, account) == [0, 0]


async def _user(store: Store, account: Account, *, period: Period = WEEK) -> str:
    user = await store.members.create_user(account.id, "Ann", now_ms=NOW_MS)
    await store.members.set_budget("user", user.id, meter="tokens", amount=100, period=period, now_ms=NOW_MS)
    return user.id


async def _budget(store: Store, account: Account) -> Budget:
    (budget,) = await store.members.budgets(account.id)
    return budget


async def test_a_gift_to_a_user_raises_their_budget_in_its_running_period(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    user = await _user(store, account)
    for _ in range(2):  # the same gift told twice is one gift
        await store.grants.add(account.id, wallet="tokens", amount=30, now_ms=NOW_MS, key="k", user_id=user)
    await store.grants.add(
        account.id, wallet="tokens", amount=5, now_ms=NOW_MS, user_id=user, expires_at_ms=NOW_MS + DAY_MS
    )
    budget = await _budget(store, account)
    ceilings = [budget.ceiling(NOW_MS + days * DAY_MS) for days in (0, 1, 6, 7)]
    assert ceilings == [135, 130, 130, 100]
    assert [grant.amount for grant in await store.grants.list(account.id)][1:] == [30, 5]


async def test_a_budget_for_ever_is_raised_for_ever_and_keeps_its_raise_when_it_is_set_anew(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    user = await _user(store, account, period=Period("once"))
    await store.grants.add(account.id, wallet="tokens", amount=30, now_ms=NOW_MS, user_id=user)
    await store.members.set_budget("user", user, meter="tokens", amount=200, period=Period("once"), now_ms=NOW_MS)
    assert (await _budget(store, account)).ceiling(NOW_MS + 9000 * DAY_MS) == 230


async def test_a_user_without_a_budget_and_a_stranger(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    other = await store.accounts.create("Other", now_ms=NOW_MS)
    stranger = await _user(store, other)
    free = await store.members.create_user(account.id, "Bob", now_ms=NOW_MS)
    await store.grants.add(account.id, wallet="tokens", amount=30, now_ms=NOW_MS, user_id=free.id)
    with pytest.raises(NotFound):
        await store.grants.add(account.id, wallet="tokens", amount=30, now_ms=NOW_MS, user_id=stranger)
    assert [grant.amount for grant in await store.grants.list(account.id)][1:] == [30]


async def test_what_is_held_is_not_taken_back(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    done = await store.grants.adjust(account.id, wallet="tokens", amount=-6_000_000, now_ms=NOW_MS, held={1: 1000})
    assert (done.amount, done.balance) == (-5_999_000, 1000)
    ended = await store.grants.revoke(account.id, 1, now_ms=NOW_MS, held={1: 400})
    assert ended.amount == 400
    await _audited(store)
