"""Laws of holds that are kept in SQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.domain.accounts import Account
from gateway.errors import Conflict
from gateway.store.common import new_id
from gateway.store.metering import HoldRow
from gateway.store.store import Store
from tests.support.stores import NOW_MS, charge


async def account_of(store: Store) -> Account:
    return await store.accounts.create("A", now_ms=NOW_MS, plan="pro")


def row(account: Account, **changes: object) -> HoldRow:
    values: dict[str, object] = {
        "id": new_id(),
        "account_id": account.id,
        "version": 1,
        "note": b"\x00note",
        "hold": {"takes": [["tokens", 1, 5]]},
        "terms": {"quantity": "5"},
        "abandon": 5,
        "lease_ends_at_ms": NOW_MS + 60_000,
        "created_at_ms": NOW_MS,
    }
    return HoldRow(**{**values, **changes})  # type: ignore[arg-type]


async def test_a_hold_is_kept_once_and_shown_to_its_account_alone(store: Store) -> None:
    mine, other = await account_of(store), await account_of(store)
    kept = row(mine)
    assert await store.metering.add(kept) == kept
    assert await store.metering.add(replace(kept, version=7)) == kept
    assert await store.metering.get(mine.id, kept.id) == kept
    assert await store.metering.get(other.id, kept.id) is None
    assert await store.metering.get(mine.id, "\x00") is None
    with pytest.raises(Conflict):
        await store.metering.add(replace(kept, account_id=other.id))
    await store.metering.remove(kept.id)
    assert await store.metering.get(mine.id, kept.id) is None


async def test_of_many_changes_of_one_version_one_is_made(store: Store) -> None:
    kept = await store.metering.add(row(await account_of(store)))
    changed = [replace(kept, version=2, abandon=number) for number in range(10)]
    done = await asyncio.gather(*(store.metering.change(each, version_before=1) for each in changed))
    assert done.count(True) == 1
    assert await store.metering.get(kept.account_id, kept.id) == changed[done.index(True)]


async def test_only_what_has_not_ended_is_alive_and_only_what_is_due_is_overdue(store: Store) -> None:
    account = await account_of(store)
    running, settled, lapsed, ended, free, long_ago = (
        row(account),
        row(account),
        row(account, lease_ends_at_ms=NOW_MS - 1000),
        row(account, lease_ends_at_ms=NOW_MS - 1000),
        row(account, lease_ends_at_ms=NOW_MS - 1000, abandon=0),
        row(account, lease_ends_at_ms=NOW_MS - 100_000),
    )
    for each in (running, settled, lapsed, ended, free, long_ago):
        await store.metering.add(each)
    number = (await store.state.snapshot(account.id)).grants[0].number
    await store.writer.commit(
        [
            charge(account, (number, 5), hold_id=settled.id),
            charge(account, (number, 5), hold_id=lapsed.id, state="lapsed"),
        ]
    )
    assert await store.metering.live(now_ms=NOW_MS) == (running,)
    assert await store.metering.live(now_ms=NOW_MS, after=running.id) == ()
    assert await store.metering.overdue(from_ms=NOW_MS - 50_000, to_ms=NOW_MS) == (ended,)
    assert await store.metering.overdue(from_ms=NOW_MS - 200_000, to_ms=NOW_MS, limit=1) == (long_ago,)
    await store.metering.forget(before_ms=NOW_MS - 50_000)
    assert await store.metering.get(account.id, long_ago.id) is None
