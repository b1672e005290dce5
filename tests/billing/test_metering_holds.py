"""Work outside the proxy that is held while it runs: ``/api/v1/holds``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.billing.office import office_at
from gateway.domain.accounts import Account
from gateway.quota.metered import Metered
from gateway.quota.reaper import ROUND_TICKS
from gateway.store.metering import HoldRow
from tests.support import stores
from tests.support.apis import Apis, Reply, apis
from tests.support.calls import ANTHROPIC
from tests.support.metering import account_with, adds_up, charged, sold, use
from tests.support.simulators import LocalModels, in_process
from tests.support.stores import Place


@pytest.fixture
async def shop(place: Place, valkey_url: str, tmp_path: Path) -> AsyncIterator[Apis]:
    """Everything that is metered by API, for sale."""
    if place.backend == "sqlite":
        (tmp_path / "data").mkdir()
        stores.copy_sqlite(tmp_path / "data")
    async with apis(valkey_url, tmp_path, text=sold(database=place.url)) as started:
        yield started


@pytest.fixture
async def models() -> AsyncIterator[LocalModels]:
    async with in_process() as running:
        yield running


async def reserve(shop: Apis, key: str, *, idempotency_key: str | None = None, **body: Any) -> Reply:
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    return await shop.call("POST", "/api/v1/holds", key=key, json=body, headers=headers)


async def opened(shop: Apis, key: str, **body: Any) -> str:
    answer = await reserve(shop, key, **body)
    assert answer.status == 201, answer.body
    return str(answer.json()["id"])


async def act(
    shop: Apis, key: str, hold_id: str, verb: str, *, idempotency_key: str | None = None, **body: Any
) -> Reply:
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    return await shop.call("POST", f"/api/v1/holds/{hold_id}/{verb}", key=key, json=body, headers=headers)


async def look(shop: Apis, key: str, hold_id: str) -> Any:
    answer = await shop.get(f"/api/v1/holds/{hold_id}", key=key)
    assert answer.status == 200, answer.body
    return answer.json()


async def has(shop: Apis, account: Account) -> tuple[int, int]:
    """(available, held) of the account's minutes."""
    balance = await office_at(shop.gateway.worker.frame.desk).reports.balance(account.id)
    (wallet,) = [each for each in balance.wallets if each.wallet == "minutes"]
    return wallet.available, wallet.held


async def over(shop: Apis, account: Account) -> None:
    """Two minutes later, in small steps, as if nothing had been away: no lease of the account runs any more, and what
    lapsed has been written."""
    worker = shop.gateway.worker
    partition = worker.engine.partition(account.id)
    for offset_ms in range(15_000, 105_001, 15_000):
        worker.engine.set_clock(offset_ms=offset_ms)
        state = await worker.engine.renew(partition, ())
        worker.gateway.quota.clock.saw(state.server_ms)
    await worker.engine.lapse(account.id)
    worker.engine.set_clock(offset_ms=112_000)  # old enough for the reaper to take it over
    for _ in range(ROUND_TICKS):
        await worker.reaper.tick()
    await worker.gateway.quota.scribe.drained()


CALL = {"service": "outbound_call"}


async def test_b3_a_call_is_held_extended_while_it_runs_and_settled_at_its_end(shop: Apis) -> None:
    key, account = await account_with(shop)
    first = (await reserve(shop, key, **CALL, quantity="1m", user="ada", metadata={"call": "c1"}, ttl="90s")).json()
    assert first | {"id": 0, "created_at": 0, "expires_at": 0, "user": 0} == {
        "id": 0, "state": "open", "used": "outbound_call", "quantity": "60s", "wallet": "minutes", "held": "2",
        "charged": "0", "overrun": "0", "remaining": "98", "basis": None, "usage": None, "model": None, "user": 0,
        "team": None, "metadata": {"call": "c1", "metered": "60s"}, "ttl": 90, "created_at": 0, "expires_at": 0,
        "ended_at": None, "shadow": None, "warning": None,
    }  # fmt: skip
    assert await has(shop, account) == (98_000, 2_000)
    for minutes in (2, 3):
        grown = (await act(shop, key, first["id"], "extend", quantity=1)).json()
        assert (grown["held"], grown["quantity"]) == (str(2 * minutes), f"{60 * minutes}s")
        assert grown["expires_at"] > first["expires_at"]
    assert await has(shop, account) == (94_000, 6_000)
    assert (await look(shop, key, first["id"]))["state"] == "open"
    settled = (await act(shop, key, first["id"], "settle", quantity="121.2s")).json()
    assert (settled["state"], settled["charged"], settled["held"]) == ("settled", "4.067", "6")
    assert (settled["remaining"], settled["quantity"], settled["basis"]) == ("95.933", "121.2s", "provider")
    assert settled == await look(shop, key, first["id"])
    assert await has(shop, account) == (95_933, 0)
    assert await charged(shop, account) == [("outbound_call", "settled", 4067)]
    await adds_up(shop, account)


async def test_b3_a_call_needs_its_minimum_balance_to_start_but_not_to_go_on(shop: Apis) -> None:
    key, account = await account_with(shop)
    await use(shop, key, {"wallet": "minutes", "amount": "90"})
    hold_id = await opened(shop, key, **CALL, quantity="1m")
    refused = await reserve(shop, key, **CALL, quantity="1m")  # 8 are left
    assert (refused.status, refused.code) == (429, "held_elsewhere")
    assert (await act(shop, key, hold_id, "extend", quantity=4)).json()["held"] == "10"
    too_much = await act(shop, key, hold_id, "extend", quantity=1)
    assert (too_much.status, too_much.code) == (429, "held_elsewhere")
    assert (await look(shop, key, hold_id))["held"] == "10"
    assert (await act(shop, key, hold_id, "settle", quantity=5)).json()["remaining"] == "0"
    assert (await reserve(shop, key, **CALL)).code == "limit_exceeded"
    await adds_up(shop, account)


async def test_what_was_used_above_the_hold_is_charged_in_full(shop: Apis) -> None:
    key, account = await account_with(shop)
    hold_id = await opened(shop, key, **CALL, quantity="1m")
    settled = (await act(shop, key, hold_id, "settle", quantity=60)).json()
    assert (settled["charged"], settled["overrun"], settled["remaining"]) == ("120", "118", "-20")
    assert (await use(shop, key, {"service": "sms"})).code == "limit_exceeded"
    await adds_up(shop, account)


async def test_a_hold_ends_once_and_the_same_end_again_is_answered_as_then(shop: Apis) -> None:
    key, account = await account_with(shop)
    one, two, three = [await opened(shop, key, **CALL, quantity=2) for _ in range(3)]
    # at once, several times over
    ends = await asyncio.gather(*(act(shop, key, one, "settle", quantity=1) for _ in range(10)))
    assert {end.status for end in ends} == {200}
    assert len({end.body for end in ends}) == 1
    other = await act(shop, key, one, "settle", quantity=2)
    assert (other.status, other.code) == (409, "hold_ended")
    assert (await act(shop, key, one, "release")).code == "hold_ended"
    assert (await act(shop, key, one, "extend", quantity=1)).code == "hold_ended"
    # two that disagree: one of them has its way
    rivals = await asyncio.gather(*(act(shop, key, two, "settle", quantity=each) for each in (1, 2)))
    assert sorted(rival.status for rival in rivals) == [200, 409]
    released = await asyncio.gather(*(act(shop, key, three, "release") for _ in range(3)))
    assert {end.json()["state"] for end in released} == {"released"}
    assert (await act(shop, key, three, "settle")).code == "hold_ended"
    lines = await charged(shop, account)
    assert [line[1] for line in lines] == ["settled"] * 3
    assert sorted(line[2] for line in lines) in ([0, 2000, 2000], [0, 2000, 4000])
    assert (await has(shop, account))[1] == 0
    await adds_up(shop, account)


@pytest.mark.parametrize(
    ("verb", "body", "code", "param"),
    [
        ("settle", {"quantity": "1000000000000"}, "invalid_request", "quantity"),
        ("settle", {"quantity": "1 minute"}, "invalid_request", "quantity"),
        ("settle", {"amount": "1"}, "invalid_request", "amount"),
        ("settle", {"ttl": 5}, "unknown_field", "ttl"),
        ("extend", {"quantity": -1}, "invalid_request", "quantity"),
        ("extend", {"ttl": 0}, "invalid_parameter", "ttl"),
        ("extend", {"ttl": "2d"}, "invalid_parameter", "ttl"),
        ("extend", {"ttl": "soon"}, "invalid_parameter", "ttl"),
        ("release", {"quantity": 1}, "unknown_field", "quantity"),
    ],
)
async def test_what_cannot_be_said_of_a_hold_changes_nothing(
    shop: Apis, verb: str, body: Any, code: str, param: str
) -> None:
    key, _ = await account_with(shop)
    hold_id = await opened(shop, key, **CALL)
    answer = await act(shop, key, hold_id, verb, **body)
    assert (answer.status, answer.code, answer.param) == (400, code, param)
    assert (await look(shop, key, hold_id))["state"] == "open"


async def test_a_released_use_is_given_back_to_its_users_limit(shop: Apis) -> None:
    key, _ = await account_with(shop, "suite")
    holds = [await opened(shop, key, feature="import_leads", user="ada") for _ in range(5)]
    assert (await reserve(shop, key, feature="import_leads", user="ada")).code == "rate_limited"
    await act(shop, key, holds[0], "release")
    assert (await reserve(shop, key, feature="import_leads", user="ada")).status == 201


async def test_a_hold_without_a_quantity_settles_as_held(shop: Apis) -> None:
    key, account = await account_with(shop)
    hold_id = await opened(shop, key, wallet="minutes", amount="12.5")
    assert (await act(shop, key, hold_id, "extend", amount="0.25")).json()["held"] == "12.75"
    assert (await act(shop, key, hold_id, "settle")).json()["charged"] == "12.75"
    assert await charged(shop, account) == [("wallet:minutes", "settled", 12_750)]


async def test_more_time_alone_takes_nothing(shop: Apis) -> None:
    key, _ = await account_with(shop)
    first = (await reserve(shop, key, **CALL, ttl=5)).json()
    later = (await act(shop, key, first["id"], "extend", ttl="10m")).json()
    assert (later["held"], later["ttl"]) == (first["held"], 600)
    assert later["expires_at"] > first["expires_at"]


async def test_what_is_held_for_a_bulk_covers_each_part_of_it(shop: Apis) -> None:
    key, account = await account_with(shop, "bulk")
    hold_id = await opened(shop, key, feature="import_leads", quantity=10)
    assert (await look(shop, key, hold_id))["held"] == "45"  # nine of them cost more than ten
    settled = (await act(shop, key, hold_id, "settle", quantity=9)).json()
    assert (settled["charged"], settled["overrun"]) == ("45", "0")
    await adds_up(shop, account)


async def test_a_price_by_card_is_settled_by_the_real_tokens(shop: Apis) -> None:
    key, _ = await account_with(shop, "bulk")
    usage = {"input_tokens": 1000, "output_tokens": 500}
    hold_id = await opened(shop, key, feature="general", model="claude-haiku-4-5", usage=usage)
    grown = (await act(shop, key, hold_id, "extend", usage={"output_tokens": 500})).json()
    assert grown["held"] == "2000"
    settled = (await act(shop, key, hold_id, "settle", usage={"input_tokens": 900, "output_tokens": 100})).json()
    assert settled["charged"] == "1000"
    assert settled["usage"]["total_tokens"] == 1000


async def test_a_hold_that_nobody_ends_is_charged_by_its_lease_and_corrected_afterwards(
    shop: Apis,
) -> None:
    key, account = await account_with(shop)
    hold_id = await opened(shop, key, **CALL, quantity=5, ttl="1s")
    await over(shop, account)
    lapsed = await look(shop, key, hold_id)
    assert (lapsed["state"], lapsed["charged"], lapsed["basis"]) == ("lapsed", "10", "estimated")
    settled = (await act(shop, key, hold_id, "settle", quantity="61.2s")).json()
    assert (settled["state"], settled["charged"]) == ("settled", "2.067")
    lines = await charged(shop, account)
    assert lines == [
        ("outbound_call", "lapsed", 10_000),
        ("outbound_call", "reversed", -10_000),
        ("outbound_call", "settled", 2067),
    ]
    assert (await has(shop, account)) == (97_933, 0)
    await adds_up(shop, account)


async def test_a_released_hold_costs_nothing_also_after_its_lapse(shop: Apis) -> None:
    key, account = await account_with(shop)
    hold_id = await opened(shop, key, **CALL, quantity=5, ttl="1s")
    await over(shop, account)
    assert (await act(shop, key, hold_id, "release")).json()["state"] == "released"
    assert sum(line[2] for line in await charged(shop, account)) == 0
    await adds_up(shop, account)


async def test_a_plan_that_releases_what_is_abandoned_charges_nothing(shop: Apis) -> None:
    key, account = await account_with(shop, "free")
    hold_id = await opened(shop, key, **CALL, quantity=5, ttl="1s")
    await over(shop, account)
    assert (await look(shop, key, hold_id))["state"] == "lapsed"
    assert await charged(shop, account) == [("outbound_call", "lapsed", 0)]
    assert (await act(shop, key, hold_id, "settle", quantity=1)).json()["charged"] == "2"
    await adds_up(shop, account)


async def test_an_extended_hold_that_had_lapsed_lives_again(shop: Apis) -> None:
    key, account = await account_with(shop)
    hold_id = await opened(shop, key, **CALL, quantity=5, ttl="1s")
    await over(shop, account)
    grown = (await act(shop, key, hold_id, "extend", quantity=1, ttl="60s")).json()
    assert (grown["state"], grown["held"], grown["charged"]) == ("open", "12", "10")  # charged for the time being
    assert (await act(shop, key, hold_id, "settle", quantity=6)).json()["charged"] == "12"
    assert sum(line[2] for line in await charged(shop, account)) == 12_000
    await adds_up(shop, account)


async def test_a_hold_is_its_accounts_alone(shop: Apis) -> None:
    key, _ = await account_with(shop, external_id="acme")
    other, _ = await account_with(shop)
    hold_id = await opened(shop, key, **CALL)
    for verb in ("extend", "settle", "release"):
        foreign = await act(shop, other, hold_id, verb)
        unknown = await act(shop, other, "01a1f8c2-39bc-7320-94e5-67d4902151ab", verb)
        assert (foreign.status, foreign.json()) == (unknown.status, unknown.json()) == (404, unknown.json())
    assert (await shop.get(f"/api/v1/holds/{hold_id}", key=other)).status == 404
    service = await shop.service_key()
    headers = {"Tollgate-Account": "acme"}
    assert (await shop.get(f"/api/v1/holds/{hold_id}", key=service, headers=headers)).status == 200
    assert (await look(shop, key, hold_id))["state"] == "open"


async def test_a_reserve_that_is_repeated_holds_once(shop: Apis) -> None:
    key, account = await account_with(shop)
    answers = await asyncio.gather(*(reserve(shop, key, **CALL, quantity=5, idempotency_key="r1") for _ in range(20)))
    assert {answer.status for answer in answers} <= {201, 409}
    again = await reserve(shop, key, **CALL, quantity=5, idempotency_key="r1")
    assert again.headers["Tollgate-Replayed"] == "true"
    assert (await has(shop, account)) == (90_000, 10_000)
    hold_id = again.json()["id"]
    grown = await asyncio.gather(
        *(act(shop, key, hold_id, "extend", quantity=1, idempotency_key="e1") for _ in range(20))
    )
    assert {answer.status for answer in grown} <= {200, 409}
    assert (await look(shop, key, hold_id))["held"] == "12"


async def test_extensions_at_once_each_take_their_own(shop: Apis) -> None:
    key, account = await account_with(shop)
    hold_id = await opened(shop, key, **CALL, quantity=1)
    answers = await asyncio.gather(*(act(shop, key, hold_id, "extend", quantity=1) for _ in range(6)))
    done = [answer for answer in answers if answer.status == 200]
    assert done
    assert {answer.code for answer in answers if answer.status != 200} <= {"hold_busy"}
    assert (await look(shop, key, hold_id))["held"] == str(2 + 2 * len(done))
    assert (await has(shop, account))[1] == 2000 + 2000 * len(done)
    await act(shop, key, hold_id, "settle", quantity=1)
    assert (await has(shop, account)) == (98_000, 0)
    await adds_up(shop, account)


async def test_a_hold_that_is_settled_while_it_is_extended_stays_settled(
    shop: Apis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's renewal may be overtaken by its settle: nothing is held for it any more."""
    key, account = await account_with(shop)
    hold_id = await opened(shop, key, **CALL, quantity=1)
    keep = Metered.keep

    async def keep_later(self: Metered, row: HoldRow, *, version_before: int) -> bool:
        assert (await act(shop, key, hold_id, "settle", quantity=1)).status == 200
        return await keep(self, row, version_before=version_before)

    with monkeypatch.context() as patched:
        patched.setattr(Metered, "keep", keep_later)
        assert (await act(shop, key, hold_id, "extend", ttl=3600)).code == "hold_ended"
    assert (await has(shop, account)) == (98_000, 0)
    assert (await look(shop, key, hold_id))["state"] == "settled"
    await adds_up(shop, account)


async def test_a_plan_in_shadow_holds_nothing_and_records_what_it_would_have_cost(shop: Apis) -> None:
    key, account = await account_with(shop, "watched")
    first = (await reserve(shop, key, **CALL, quantity=5)).json()
    assert (first["held"], first["shadow"]) == ("0", "call_too_large")
    assert (await act(shop, key, first["id"], "extend", quantity=5)).status == 200
    settled = (await act(shop, key, first["id"], "settle", quantity=10)).json()
    assert (settled["charged"], settled["shadow"]) == ("0", "call_too_large")
    await shop.gateway.settled()
    (record,) = (await shop.gateway.worker.store.usage.list(account.id)).items
    assert record.waived == 20_000


async def test_a_metered_call_is_a_hold_too_while_it_runs_and_afterwards(
    valkey_url: str, tmp_path: Path, models: LocalModels
) -> None:
    (tmp_path / "data").mkdir()
    stores.copy_sqlite(tmp_path / "data")
    async with apis(valkey_url, tmp_path, text=sold(models.url)) as shop:
        key, account = await account_with(shop, "bulk")
        body = ANTHROPIC.body()
        answer = await shop.call(
            "POST", ANTHROPIC.path, key=key, json=body, headers={"anthropic-version": "2023-06-01"}
        )
        assert answer.status == 200
        await shop.gateway.settled()
        call_id = answer.headers["Tollgate-Request-Id"]
        settled = await look(shop, key, call_id)
        assert (settled["state"], settled["basis"], settled["used"]) == ("settled", "provider", "general")
        assert settled["charged"] == answer.headers["Tollgate-Charged"] == str(settled["usage"]["total_tokens"])
        assert settled["remaining"] == answer.headers["Tollgate-Remaining"]
        running = await shop.held(account)
        flying = await look(shop, key, running)
        assert (flying["state"], flying["used"], flying["charged"]) == ("open", None, "0")
        assert flying["held"] != "0"
        for verb in ("extend", "settle", "release"):  # its own worker ends it
            assert (await act(shop, key, running, verb)).status == 404


@pytest.mark.parametrize("end", ["settle", "release"])
async def test_a_hold_that_ends_while_it_is_extended_holds_nothing_any_more(
    shop: Apis, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    key, account = await account_with(shop)
    for moment in ("grow", "keep"):  # the one finds it gone and brings it back, the other renews it
        hold_id = await opened(shop, key, **CALL, quantity=5)
        step = getattr(Metered, moment)

        async def meanwhile(*args: Any, hold_id: str = hold_id, step: Any = step, **more: Any) -> Any:
            monkeypatch.undo()
            assert (await act(shop, key, hold_id, end)).status == 200
            return await step(*args, **more)

        monkeypatch.setattr(Metered, moment, meanwhile)
        answer = await act(shop, key, hold_id, "extend", quantity=5)
        assert (answer.status, answer.code) == (409, "hold_ended")
        assert (await has(shop, account))[1] == 0
    await adds_up(shop, account)
