"""Laws of requests that are done once."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import IdempotencyConflict, IdempotencyInFlight
from gateway.store.idempotency import KEPT_MS, RUNNING_MAX_MS, Begun, Replay
from gateway.store.store import Store
from tests.support.stores import NOW_MS

SCOPE, KEY, BODY = "key1 account1 POST /api/v1/usage", "use-1", "d1"


async def begun(store: Store, *, now_ms: int = NOW_MS, digest: str = BODY, scope: str = SCOPE) -> Begun:
    found = await store.idempotency.begin(scope, KEY, digest, now_ms=now_ms)
    assert isinstance(found, Begun)
    return found


async def test_of_fifty_at_once_one_runs_and_the_others_are_told_so(store: Store) -> None:
    async def one() -> str:
        try:
            return type(await store.idempotency.begin(SCOPE, KEY, BODY, now_ms=NOW_MS)).__name__
        except IdempotencyInFlight as error:
            assert error.retry_after_s
            return "in flight"

    answers = await asyncio.gather(*(one() for _ in range(50)))
    assert sorted(answers) == ["Begun"] + ["in flight"] * 49


async def test_what_is_done_is_answered_again_for_a_day(store: Store) -> None:
    await store.idempotency.finish(await begun(store), status=201, answer='{"a":1}')
    again = await store.idempotency.begin(SCOPE, KEY, BODY, now_ms=NOW_MS + KEPT_MS - 1)
    assert again == Replay(201, '{"a":1}')
    later = await begun(store, now_ms=NOW_MS + KEPT_MS)
    assert not later.again  # and nothing of then is found
    assert later.seed == later.owner


async def test_another_body_under_the_same_key_is_a_conflict(store: Store) -> None:
    first = await begun(store)
    for _ in range(2):  # while it runs, and when it is done
        with pytest.raises(IdempotencyConflict) as caught:
            await store.idempotency.begin(SCOPE, KEY, "d2", now_ms=NOW_MS)
        assert caught.value.code == "idempotency_conflict"
        await store.idempotency.finish(first, status=200, answer="{}")


async def test_a_key_belongs_to_its_scope_alone(store: Store) -> None:
    await begun(store)
    assert not (await begun(store, scope="key2 account1 POST /api/v1/usage")).again


async def test_a_refusal_frees_its_key(store: Store) -> None:
    await store.idempotency.give_up(await begun(store))
    assert not (await begun(store, digest="d2")).again


async def test_who_died_blocks_its_key_for_a_while_and_is_then_taken_over(store: Store) -> None:
    first = await begun(store)
    with pytest.raises(IdempotencyInFlight):
        await store.idempotency.begin(SCOPE, KEY, BODY, now_ms=NOW_MS + RUNNING_MAX_MS - 1)
    second = await begun(store, now_ms=NOW_MS + RUNNING_MAX_MS)
    assert second.again
    assert second.seed == first.seed
    # and whoever lives after all has no say any more
    await store.idempotency.finish(first, status=200, answer="first")
    await store.idempotency.give_up(first)
    await store.idempotency.finish(second, status=200, answer="second")
    assert await store.idempotency.begin(SCOPE, KEY, BODY, now_ms=NOW_MS) == Replay(200, "second")


async def test_what_ended_unknown_is_taken_over_at_once(store: Store) -> None:
    first = await begun(store)
    await store.idempotency.leave(first)
    second = await begun(store, now_ms=NOW_MS + 1)
    assert second.again
    assert second.seed == first.seed


async def test_old_answers_are_forgotten_and_young_ones_are_not(store: Store) -> None:
    await store.idempotency.finish(await begun(store), status=200, answer="{}")
    await store.idempotency.forget(now_ms=NOW_MS + KEPT_MS - 1)
    assert isinstance(await store.idempotency.begin(SCOPE, KEY, BODY, now_ms=NOW_MS), Replay)
    await store.idempotency.forget(now_ms=NOW_MS + KEPT_MS)
    assert isinstance(await store.idempotency.begin(SCOPE, KEY, BODY, now_ms=NOW_MS), Begun)
