"""Accounts: created whole, found by every name they have, and what changes them reaches who has them cached."""

from __future__ import annotations

import asyncio

import pytest

from gateway.domain.accounts import AccountStatus, SubscriptionStatus
from gateway.errors import AccountNotFound, BadRequest, Conflict
from gateway.store.common import new_id
from gateway.store.store import Store
from tests.support.stores import DAY_MS, NOW_MS


async def test_a_new_account_starts_on_trial_with_its_grant(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, email="Ann@Acme.test", external_id="acme-1")
    assert account.subscription.status is SubscriptionStatus.TRIALING
    assert account.subscription.trial_ends_at_ms == NOW_MS + 7 * DAY_MS
    snapshot = await store.state.snapshot(account.id)
    assert [(grant.number, grant.amount, grant.expires_at_ms) for grant in snapshot.grants] == [
        (1, 6_000_000, NOW_MS + 7 * DAY_MS)
    ]
    assert (snapshot.seq, snapshot.turn_at_ms) == (0, NOW_MS + 7 * DAY_MS)
    assert await store.accounts.by_ref(account.id) == account


async def test_an_account_is_found_by_each_of_its_names(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, email="Ann@Acme.test", external_id="acme-1")
    await store.accounts.create("Other", now_ms=NOW_MS)
    assert await store.accounts.by_ref("acme-1") == account
    assert await store.accounts.by_email(" ANN@acme.TEST") == (account,)


@pytest.mark.parametrize("ref", ["", "nobody", "ACME-1", "acme-1 ", "a\0b", "\ud800", "é" * 500, "' OR 1=1 --"])
async def test_what_nobody_is_called_finds_nobody(store: Store, ref: str) -> None:
    await store.accounts.create("Acme", now_ms=NOW_MS, external_id="acme-1")
    assert await store.accounts.by_ref(ref) is None
    assert await store.accounts.by_email(ref) == ()
    assert await store.callers.account_by_ref(ref) is None


async def test_our_own_id_beats_an_external_id_of_the_same_text(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    await store.accounts.create("Squatter", now_ms=NOW_MS, external_id=account.id)
    assert await store.accounts.by_ref(account.id) == account


async def test_an_external_id_is_given_once(store: Store) -> None:
    names = [f"A{i}" for i in range(5)]
    made = await asyncio.gather(
        *(store.accounts.create(name, now_ms=NOW_MS, external_id="same") for name in names), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in made) == ["Account", *["Conflict"] * 4]
    assert len((await store.accounts.list()).items) == 1


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("", {}),
        ("   ", {}),
        ("x" * 201, {}),
        ("a\0b", {}),
        ("a\nb", {}),
        ("Acme", {"external_id": "\ud800"}),
        ("Acme", {"plan": "gold"}),
        ("Acme", {"email": "a\tb"}),
    ],
)
async def test_a_name_that_no_list_could_show_is_refused(store: Store, name: str, changes: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        await store.accounts.create(name, now_ms=NOW_MS, **changes)  # type: ignore[arg-type]
    assert (await store.accounts.list()).items == ()


async def test_pages_of_accounts_have_each_once_in_order(store: Store) -> None:
    made = [await store.accounts.create(f"A{i}", now_ms=NOW_MS + i) for i in range(7)]
    found, after = [], None
    while True:
        page = await store.accounts.list(after=after, limit=3)
        found += page.items
        after = page.next
        if after is None:
            break
    assert found == made
    assert [account_id async for account_id in store.accounts.ids()] == [account.id for account in made]
    assert (await store.accounts.list(plan="pro")).items == ()
    assert await store.accounts.counts() == {("trial", "trialing"): 7}


async def test_suspending_is_a_new_rev_and_a_push(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    assert await store.state.pushes() == ()
    suspended = await store.accounts.set_status(account.id, AccountStatus.SUSPENDED, now_ms=NOW_MS)
    assert (suspended.status, suspended.rev) == (AccountStatus.SUSPENDED, account.rev + 1)
    assert (await store.state.snapshot(account.id)).rev == suspended.rev
    pushes = await store.state.pushes()
    assert [owner for _, owner in pushes] == [account.id]
    await store.state.delete_pushes([push for push, _ in pushes])
    await store.state.delete_pushes([push for push, _ in pushes])
    assert await store.state.pushes() == ()


async def test_renaming_keeps_external_ids_unique(store: Store) -> None:
    await store.accounts.create("Acme", now_ms=NOW_MS, external_id="a")
    other = await store.accounts.create("Other", now_ms=NOW_MS, external_id="b")
    with pytest.raises(Conflict):
        await store.accounts.rename(other.id, name="Other", email=None, external_id="a", now_ms=NOW_MS)
    renamed = await store.accounts.rename(other.id, name="New", email="N@x.test", external_id=None, now_ms=NOW_MS)
    assert (renamed.name, renamed.email, renamed.external_id) == ("New", "n@x.test", None)
    assert renamed.rev > other.rev


async def test_nothing_is_done_to_an_account_that_is_not_there(store: Store) -> None:
    nobody = new_id()
    for act in (
        store.accounts.set_status(nobody, AccountStatus.SUSPENDED, now_ms=NOW_MS),
        store.subscriptions.subscribe(nobody, "pro", now_ms=NOW_MS),
        store.subscriptions.turn(nobody, now_ms=NOW_MS),
        store.subscriptions.cancel(nobody, now_ms=NOW_MS),
        store.grants.add(nobody, wallet="tokens", amount=1, now_ms=NOW_MS),
        store.grants.adjust(nobody, wallet="tokens", amount=-1, now_ms=NOW_MS),
        store.members.create_team(nobody, "T", now_ms=NOW_MS),
        store.members.user_for(nobody, "u", now_ms=NOW_MS),
        store.keys.create(digest=b"1", prefix="tg_1", now_ms=NOW_MS, account_id=nobody),
        store.state.snapshot(nobody),
        store.plans.advance(nobody, now_ms=NOW_MS),
    ):
        with pytest.raises(AccountNotFound):
            await act


async def test_every_change_leaves_its_line_in_the_audit_log(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, actor="ann")
    await store.accounts.set_status(account.id, AccountStatus.SUSPENDED, now_ms=NOW_MS, reason="unpaid", actor="bob")
    await store.subscriptions.subscribe(account.id, "pro", now_ms=NOW_MS, actor="bob")
    lines = (await store.ledger.audit_log(account_id=account.id)).items
    assert [(line.actor, line.action) for line in lines] == [
        ("bob", "subscribe"),
        ("bob", "set_status"),
        ("ann", "create_account"),
    ]
    told = {"before": {"status": "active"}, "after": {"status": "suspended"}, "reason": "unpaid"}
    assert lines[1].detail == told
    page = await store.ledger.audit_log(limit=2)
    assert [line.id for line in (await store.ledger.audit_log(cursor=page.next)).items] == [lines[2].id]


async def test_partitions_are_fixed_by_whoever_asks_first(store: Store) -> None:
    first = await asyncio.gather(*(store.installed_partitions(partitions=n, now_ms=NOW_MS) for n in (64, 128)))
    assert len(set(first)) == 1
    assert await store.installed_partitions(now_ms=NOW_MS) == first[0]
