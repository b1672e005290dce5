"""Keys: only digests are stored; what is revoked, rotated away or unknown is alike."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from gateway.domain.periods import Period
from gateway.errors import Conflict, NotFound
from gateway.store.common import new_id
from gateway.store.store import Store
from tests.support.stores import NOW_MS

MONTH = Period("month")


async def test_a_key_authenticates_its_account(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    key = await store.keys.create(digest=b"d1", prefix="tg_abc", now_ms=NOW_MS, account_id=account.id, name="ci")
    caller = await store.callers.caller_by_digest(b"d1")
    assert caller is not None
    assert (caller.key_id, caller.account, caller.service, caller.budgets) == (key.id, account, False, ())
    assert (caller.team_id, caller.user_id, caller.expires_at_ms) == (None, None, 0)
    assert await store.callers.caller_by_digest(b"d2") is None


async def test_a_key_of_a_user_is_also_of_the_users_team(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    team = await store.members.create_team(account.id, "Core", now_ms=NOW_MS)
    user = await store.members.create_user(account.id, "Ann", now_ms=NOW_MS, team_id=team.id)
    await store.keys.create(digest=b"d1", prefix="tg_abc", now_ms=NOW_MS, account_id=account.id, user_id=user.id)
    caller = await store.callers.caller_by_digest(b"d1")
    assert caller is not None
    assert (caller.team_id, caller.user_id) == (team.id, user.id)


async def test_a_service_key_has_no_account(store: Store) -> None:
    key = await store.keys.create(digest=b"d1", prefix="tg_abc", now_ms=NOW_MS)
    caller = await store.callers.caller_by_digest(b"d1")
    assert caller is not None
    assert (caller.key_id, caller.account, caller.service) == (key.id, None, True)
    assert [each.id for each in (await store.keys.list(None)).items] == [key.id]


async def test_a_revoked_key_is_unknown_and_its_account_is_told(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    key = await store.keys.create(digest=b"d1", prefix="tg_abc", now_ms=NOW_MS, account_id=account.id)
    revoked = await store.keys.revoke(key.id, now_ms=NOW_MS + 1)
    assert await store.callers.caller_by_digest(b"d1") is None
    assert await store.keys.revoke(key.id, now_ms=NOW_MS + 2) == revoked
    assert (await store.state.snapshot(account.id)).rev == account.rev + 1
    assert [owner for _, owner in await store.state.pushes()] == [account.id]
    assert (await store.keys.list(account.id)).items == ()
    assert (await store.keys.list(account.id, revoked=True)).items == (revoked,)


async def test_a_rotated_key_lives_as_long_as_the_overlap(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    old = await store.keys.create(digest=b"d1", prefix="tg_abc", now_ms=NOW_MS, account_id=account.id, name="ci")
    new = await store.keys.rotate(old.id, digest=b"d2", prefix="tg_new", now_ms=NOW_MS, overlap_ms=60_000)
    first, second = [await store.callers.caller_by_digest(digest) for digest in (b"d1", b"d2")]
    assert first is not None and second is not None
    assert (first.expires_at_ms, second.expires_at_ms) == (NOW_MS + 60_000, 0)
    assert (new.name, new.account_id) == ("ci", account.id)
    assert second.account is not None and second.account.rev > account.rev
    await store.keys.revoke(old.id, now_ms=NOW_MS)
    with pytest.raises(NotFound):
        await store.keys.rotate(old.id, digest=b"d3", prefix="tg_x", now_ms=NOW_MS)


async def test_a_digest_belongs_to_one_key(store: Store) -> None:
    made = await asyncio.gather(
        *(store.keys.create(digest=b"d1", prefix="tg_abc", now_ms=NOW_MS) for _ in range(4)), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in made) == ["Conflict", "Conflict", "Conflict", "Key"]


async def test_a_key_is_bound_only_to_members_of_its_account(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    other = await store.accounts.create("Other", now_ms=NOW_MS)
    team = await store.members.create_team(other.id, "Theirs", now_ms=NOW_MS)
    user = await store.members.create_user(other.id, "Theirs", now_ms=NOW_MS)
    for binding in ({"team_id": team.id}, {"user_id": user.id}, {"team_id": new_id()}):
        with pytest.raises(NotFound):
            await store.keys.create(digest=b"1", prefix="tg_1", now_ms=NOW_MS, account_id=account.id, **binding)
    with pytest.raises(NotFound):
        await store.members.create_user(account.id, "Ann", now_ms=NOW_MS, team_id=team.id)


@pytest.mark.parametrize("key_id", ["", "nobody", "a\0b", "\ud800"])
async def test_an_unknown_key_is_not_found(store: Store, key_id: str) -> None:
    for act in (store.keys.get(key_id), store.keys.revoke(key_id, now_ms=NOW_MS)):
        with pytest.raises(NotFound):
            await act


async def test_a_user_is_created_on_first_sight_once(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    seen = await asyncio.gather(*(store.callers.user_for(account.id, "u-1", now_ms=NOW_MS) for _ in range(8)))
    assert len(set(seen)) == 1 and seen[0] is not None
    assert await store.callers.user_for(account.id, seen[0], now_ms=NOW_MS) == seen[0]
    assert [user.external_id for user in (await store.members.list_users(account.id)).items] == ["u-1"]
    assert await store.callers.user_for(account.id, "a\0b", now_ms=NOW_MS) is None
    assert await store.callers.user_for(account.id, "\ud800", now_ms=NOW_MS) is None
    assert await store.callers.user_for(account.id, "x" * 201, now_ms=NOW_MS) is None


async def test_users_on_first_sight_are_bounded(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    async with store.database.write() as connection:
        await connection.execute(text("UPDATE accounts SET users_seen = 9999"))
    last = await store.callers.user_for(account.id, "last", now_ms=NOW_MS)
    assert last is not None
    assert await store.callers.user_for(account.id, "one too many", now_ms=NOW_MS) is None
    assert await store.callers.user_for(account.id, "last", now_ms=NOW_MS) == last
    await store.members.create_user(account.id, "by hand", now_ms=NOW_MS)


async def test_another_accounts_users_and_teams_are_not_seen(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    other = await store.accounts.create("Other", now_ms=NOW_MS)
    team = await store.members.create_team(other.id, "Core", now_ms=NOW_MS, external_id="core")
    user = await store.members.create_user(other.id, "Ann", now_ms=NOW_MS, external_id="ann")
    assert await store.callers.team_for(account.id, "core") is None
    assert await store.callers.team_for(account.id, team.id) is None
    assert await store.callers.team_for(other.id, "core") == team.id
    assert await store.callers.user_for(account.id, "ann", now_ms=NOW_MS) != user.id
    with pytest.raises(Conflict):
        await store.members.create_team(other.id, "Again", now_ms=NOW_MS, external_id="core")


async def test_budgets_come_with_the_caller_and_replace_each_other(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, external_id="acme")
    team = await store.members.create_team(account.id, "Core", now_ms=NOW_MS)
    key = await store.keys.create(digest=b"d1", prefix="tg_abc", now_ms=NOW_MS, account_id=account.id, team_id=team.id)
    options = {"meter": "tokens", "period": MONTH, "now_ms": NOW_MS}
    owner, first = await store.members.set_budget("team", team.id, amount=100, **options)  # type: ignore[arg-type]
    _, second = await store.members.set_budget("key", key.id, amount=7, **options)  # type: ignore[arg-type]
    assert (owner, first.number, second.number) == (account.id, 1, 2)
    _, raised = await store.members.set_budget("team", team.id, amount=200, **{**options, "now_ms": NOW_MS + 5})  # type: ignore[arg-type]
    assert (raised.number, raised.anchor_at_ms) == (1, NOW_MS)  # the same budget with more in it
    daily = Period("fixed", 86_400)
    _, other = await store.members.set_budget("team", team.id, meter="tokens", amount=9, period=daily, now_ms=NOW_MS)
    assert other.number == 3  # another period is another budget
    caller = await store.callers.caller_by_digest(b"d1")
    assert caller is not None and caller.budgets == (second, other)
    found = await store.callers.account_by_ref("acme")
    assert found is not None and found[1] == (second, other)
    await store.members.remove_budget(account.id, 3, now_ms=NOW_MS)
    assert await store.members.budgets(account.id) == (second,)
    for act in (
        store.members.remove_budget(account.id, 3, now_ms=NOW_MS),
        store.members.set_budget("team", new_id(), amount=1, **options),  # type: ignore[arg-type]
        store.members.set_budget("user", team.id, amount=1, **options),  # type: ignore[arg-type]
    ):
        with pytest.raises(NotFound):
            await act
