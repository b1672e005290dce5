"""Work outside the proxy, used in one call: ``POST /api/v1/usage``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.billing.office import office_at
from tests.support import stores
from tests.support.apis import Apis, apis
from tests.support.metering import MESSAGES, account_with, adds_up, charged, sold, use
from tests.support.stores import Place


@pytest.fixture
async def shop(place: Place, valkey_url: str, tmp_path: Path) -> AsyncIterator[Apis]:
    """Everything that is metered by API, for sale."""
    if place.backend == "sqlite":
        (tmp_path / "data").mkdir()
        stores.copy_sqlite(tmp_path / "data")
    async with apis(valkey_url, tmp_path, text=sold(database=place.url, messages=MESSAGES)) as started:
        yield started


async def test_b1_seven_messages_cost_three_and_a_half_tokens(shop: Apis) -> None:
    key, account = await account_with(shop)
    for _ in range(7):
        answer = (await use(shop, key, {"service": "sms"})).json()
        assert answer["charged"] == "0.5"
    assert answer["remaining"] == "96.5"
    at_once = (await use(shop, key, {"service": "sms", "quantity": 7})).json()
    assert (at_once["charged"], at_once["remaining"], at_once["quantity"]) == ("3.5", "93", "7")
    assert await charged(shop, account) == [("sms", "settled", 500)] * 7 + [("sms", "settled", 3500)]
    await adds_up(shop, account)


async def test_a_time_is_billed_in_increments_and_rounded_once(shop: Apis) -> None:
    key, account = await account_with(shop)
    for quantity, cost in (("61.2s", "2.067"), (1.02, "2.067"), ("1", "2"), (3, "6")):
        answer = (await use(shop, key, {"service": "outbound_call", "quantity": quantity})).json()
        assert answer["charged"] == cost
    await adds_up(shop, account)
    records = (await shop.gateway.worker.store.usage.list(account.id)).items
    assert [each.metadata for each in records][-1] == {"metered": "61.2s"}
    assert len(records) == 4


async def test_c2_a_check_takes_nothing_and_a_use_tells_the_credits(shop: Apis) -> None:
    key, account = await account_with(shop, "credits")
    checked = (await use(shop, key, {"feature": "code_review", "dry_run": True})).json()
    assert checked["success"] and checked["dry_run"]
    assert checked["creditInfo"] == {"tokensUsed": "0", "creditsRemaining": "5", "totalTokensUsed": "0"}
    for used in range(1, 6):
        answer = (await use(shop, key, {"feature": "code_review"})).json()
        assert answer["success"]
        assert answer["creditInfo"] == {
            "tokensUsed": "2000",
            "creditsRemaining": str(5 - used),
            "totalTokensUsed": str(2000 * used),
        }
    assert len(await charged(shop, account)) == 5


async def test_c5_without_credits_the_refusal_has_the_apps_own_words(shop: Apis) -> None:
    key, account = await account_with(shop, "credits")
    await use(shop, key, {"feature": "code_review", "quantity": 5})
    for dry in (False, True):
        refused = await use(shop, key, {"feature": "code_review", "dry_run": dry})
        assert refused.status == 429
        assert refused.headers["x-should-retry"] == "false"
        assert refused.json() | {"tollgate": None} == {
            "error": "Insufficient credits",
            "detail": "You have 0 credits remaining (0 tokens)",
            "status": 429,
            "tollgate": None,
        }
        assert refused.json()["tollgate"]["reason"] == "limit_exceeded"
    assert len(await charged(shop, account)) == 1


async def test_b3_a_use_needs_the_minimum_balance(shop: Apis) -> None:
    key, account = await account_with(shop)
    plain = (await use(shop, key, {"wallet": "minutes", "amount": "90.5"})).json()
    assert (plain["quantity"], plain["cost"]) == ("90.5", "90.5")
    refused = await use(shop, key, {"service": "outbound_call", "quantity": "1s"})
    assert (refused.status, refused.code) == (429, "insufficient_tokens")
    told = refused.json()["error"]["tollgate"]
    assert (told["needed"], told["available"]) == ("10", "9.5")
    assert (await use(shop, key, {"service": "sms"})).status == 200
    assert await charged(shop, account) == [("wallet:minutes", "settled", 90_500), ("sms", "settled", 500)]


async def test_e2_a_price_by_size_counts_the_tokens_above_its_floor(shop: Apis) -> None:
    key, _ = await account_with(shop, "suite")
    floor = (await use(shop, key, {"feature": "sized"})).json()
    assert floor["charged"] == "2"
    sized = {"feature": "sized", "usage": {"input_tokens": 8000, "output_tokens": 2000}}
    assert (await use(shop, key, sized)).json()["charged"] == "5"


async def test_e3_many_at_once_cost_less(shop: Apis) -> None:
    key, _ = await account_with(shop, "bulk")
    assert (await use(shop, key, {"feature": "import_leads", "quantity": 9})).json()["charged"] == "45"
    assert (await use(shop, key, {"feature": "import_leads", "quantity": 10})).json()["charged"] == "40"


async def test_a_price_by_card_needs_its_model(shop: Apis) -> None:
    key, _ = await account_with(shop, "bulk")
    body = {"feature": "general", "usage": {"input_tokens": 100, "output_tokens": 20}}
    assert (await use(shop, key, body)).param == "model"
    assert (await use(shop, key, {**body, "model": "claude-haiku-4-5"})).json()["charged"] == "120"
    assert (await use(shop, key, {**body, "model": "nobody-knows"})).code == "unknown_model"


async def test_d7_a_user_may_use_only_so_often(shop: Apis) -> None:
    key, account = await account_with(shop, "suite")
    leads = {"feature": "import_leads", "user": "ada"}
    for _ in range(5):
        assert (await use(shop, key, leads)).status == 200
    refused = await use(shop, key, leads)
    assert (refused.status, refused.code) == (429, "rate_limited")
    assert refused.json()["error"]["tollgate"]["scope"] == "user"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert (await use(shop, key, {"feature": "import_leads", "user": "grace"})).status == 200
    # uses of one call count each, and a refused one counts none
    assert (await use(shop, key, {"feature": "import_leads", "user": "grace", "quantity": 5})).status == 429
    assert (await use(shop, key, {"feature": "import_leads", "user": "grace", "quantity": 4})).status == 200
    assert len(await charged(shop, account)) == 7


async def test_what_the_plan_does_not_include_is_refused(shop: Apis) -> None:
    key, _ = await account_with(shop, "none")
    refused = await use(shop, key, {"feature": "import_leads"})
    assert (refused.status, refused.code) == (403, "feature_not_in_plan")
    suite, _ = await account_with(shop, "suite")
    assert (await use(shop, suite, {"service": "sms"})).code == "feature_not_in_plan"


async def test_a_plan_in_shadow_lets_pass_and_records(shop: Apis) -> None:
    key, account = await account_with(shop, "watched")
    answer = (await use(shop, key, {"service": "outbound_call", "quantity": 5})).json()
    assert (answer["charged"], answer["cost"], answer["shadow"]) == ("0", "10", "call_too_large")
    await shop.gateway.settled()
    (record,) = (await shop.gateway.worker.store.usage.list(account.id)).items
    assert (record.charged, record.waived) == (0, 10_000)


async def test_a_user_budget_of_the_wallet_counts_and_one_of_another_does_not(shop: Apis) -> None:
    key, account = await account_with(shop)
    body = {"service": "sms", "quantity": 4, "user": "ada"}
    assert (await use(shop, key, body)).status == 200
    budgets = office_at(shop.gateway.worker.frame.desk).budgets
    await budgets.set("user", "ada", meter="leads", text="1", period="30d", account_ref=account.id)
    assert (await use(shop, key, body)).status == 200
    await budgets.set("user", "ada", meter="minutes", text="5", period="30d", account_ref=account.id)
    assert (await use(shop, key, body)).status == 200
    assert (await use(shop, key, body)).status == 200
    refused = await use(shop, key, body)
    assert (refused.code, refused.json()["error"]["tollgate"]["scope"]) == ("budget_exceeded", "user")
    await adds_up(shop, account)


async def test_of_a_list_every_item_is_answered_and_one_refusal_stops_no_other(shop: Apis) -> None:
    key, account = await account_with(shop)
    body = [
        {"service": "sms", "quantity": 100},
        {"service": "outbound_call", "quantity": 30},
        {"service": "fax"},
        {"service": "sms", "quantity": 80, "user": "ada"},
        {"service": "sms", "quantity": 2, "dry_run": True},
    ]
    answer = await use(shop, key, body)
    assert answer.status == 200
    items = answer.json()["items"]
    assert [item["success"] for item in items] == [True, False, False, True, True]
    assert [item["status"] for item in items if not item["success"]] == [429, 400]
    assert [item["error"]["code"] for item in items if not item["success"]] == [
        "insufficient_tokens",
        "unknown_service",
    ]
    assert items[3]["remaining"] == "10"
    assert len({item["id"] for item in items if item["success"]}) == 3
    assert await charged(shop, account) == [("sms", "settled", 50_000), ("sms", "settled", 40_000)]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "invalid_request", None),
        ({"service": "sms", "feature": "code_review"}, "invalid_request", "feature"),
        ({"service": "fax"}, "unknown_service", "service"),
        ({"feature": "fax"}, "unknown_feature", "feature"),
        ({"wallet": "fax", "amount": "1"}, "invalid_request", "wallet"),
        ({"wallet": "minutes"}, "invalid_request", "amount"),
        ({"service": "sms", "amount": "1"}, "invalid_request", "wallet"),
        ({"wallet": "minutes", "amount": "0.0001"}, "invalid_request", "amount"),
        ({"wallet": "minutes", "amount": "-1"}, "invalid_request", "amount"),
        ({"wallet": "minutes", "amount": 1.5}, "invalid_parameter", "amount"),
        ({"wallet": "minutes", "amount": "1", "quantity": 2}, "invalid_request", "quantity"),
        ({"service": "sms", "quantity": 1.5}, "invalid_request", "quantity"),
        ({"service": "sms", "quantity": -1}, "invalid_request", "quantity"),
        ({"service": "sms", "quantity": True}, "invalid_parameter", "quantity"),
        ({"service": "sms", "quantity": 1e300}, "invalid_request", "quantity"),
        ({"service": "outbound_call", "quantity": "1 minute"}, "invalid_request", "quantity"),
        ({"service": "sms", "metadata": {"a": "x" * 3000}}, "invalid_parameter", "metadata"),
        ({"service": "sms", "team": "nobody"}, "not_found", "team"),
        ({"service": "sms", "price": "1"}, "unknown_field", "price"),
        ([], "invalid_parameter", "items"),
        ([{"service": "sms", "dry_run": 1}], "invalid_parameter", "items.0.dry_run"),
        ("sms", "invalid_parameter", None),
    ],
)
async def test_what_cannot_be_metered_is_refused_with_its_place(
    valkey_url: str, tmp_path: Path, body: object, code: str, param: str | None
) -> None:
    (tmp_path / "data").mkdir()
    stores.copy_sqlite(tmp_path / "data")
    async with apis(valkey_url, tmp_path, text=sold()) as shop:
        key, account = await account_with(shop)
        answer = await use(shop, key, body)
        assert (answer.status in (400, 404), answer.code, answer.param) == (True, code, param)
        assert await charged(shop, account) == []


async def test_a_service_key_acts_by_external_id_and_a_foreign_account_is_unknown(shop: Apis) -> None:
    key, account = await account_with(shop, external_id="acme")
    other, _ = await account_with(shop)
    service = await shop.service_key()
    assert (await use(shop, service, {"service": "sms", "organizationId": "acme"})).status == 200
    assert (await use(shop, service, {"service": "sms"}, **{"Tollgate-Account": "acme"})).status == 200
    assert (await use(shop, service, {"service": "sms"})).code == "account_not_found"
    foreign = await use(shop, other, {"service": "sms", "account": "acme"})
    unknown = await use(shop, other, {"service": "sms", "account": "nobody"})
    assert (foreign.status, foreign.json()) == (unknown.status, unknown.json()) == (404, foreign.json())
    assert len(await charged(shop, account)) == 2
    assert (await shop.call("POST", "/api/v1/usage", json={"service": "sms"})).status == 401
    assert (await use(shop, key, {"service": "sms", "account": "acme"})).status == 200


async def test_a_request_that_is_repeated_is_charged_once_and_answered_alike(shop: Apis) -> None:
    key, account = await account_with(shop)
    body = {"service": "sms", "quantity": 7}
    first = await use(shop, key, body, idempotency_key="k1")
    again = await use(shop, key, {"quantity": 7, "service": "sms"}, idempotency_key="k1")
    assert first.status == again.status == 200
    assert first.body == again.body
    assert "Tollgate-Replayed" not in first.headers
    assert again.headers["Tollgate-Replayed"] == "true"
    assert await charged(shop, account) == [("sms", "settled", 3500)]
    other = await use(shop, key, {"service": "sms", "quantity": 8}, idempotency_key="k1")
    assert (other.status, other.code) == (409, "idempotency_conflict")
    # the same key of another account is another request
    second, _ = await account_with(shop)
    assert "Tollgate-Replayed" not in (await use(shop, second, body, idempotency_key="k1")).headers
    await adds_up(shop, account)


async def test_of_fifty_repeats_at_once_one_is_charged(shop: Apis) -> None:
    key, account = await account_with(shop)
    body = [{"service": "sms", "quantity": 7}, {"service": "sms", "quantity": 1}]
    answers = await asyncio.gather(*(use(shop, key, body, idempotency_key="k1") for _ in range(50)))
    done = [answer for answer in answers if answer.status == 200]
    assert len({answer.body for answer in done}) == 1
    for answer in answers:
        if answer.status != 200:
            assert (answer.status, answer.code) == (409, "idempotency_in_flight")
            assert answer.headers["x-should-retry"] == "true"
            assert int(answer.headers["retry-after"]) >= 1
    assert await charged(shop, account) == [("sms", "settled", 3500), ("sms", "settled", 500)]
    await adds_up(shop, account)


async def test_a_refused_request_frees_its_key(shop: Apis) -> None:
    key, account = await account_with(shop)
    await use(shop, key, {"wallet": "minutes", "amount": "100"})
    assert (await use(shop, key, {"service": "sms"}, idempotency_key="k1")).status == 429
    await shop.gateway.worker.store.grants.add(account.id, wallet="minutes", amount=1000, now_ms=account.created_at_ms)
    frame = shop.gateway.worker.frame
    await frame.desk.deliver(account.id)
    assert (await use(shop, key, {"service": "sms"}, idempotency_key="k1")).status == 200
