"""For whom a call is: keys of one account, service keys for many; and the users, teams and jobs that a call names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.domain.periods import parse_period
from gateway.quota.keys import KeyHasher, display_prefix, new_key
from gateway.store import members
from tests.support.bills import STEPS, assert_settled_to, tokens_served, usage_rows
from tests.support.calls import CHAT, DIALECTS, Dialect
from tests.support.gateways import Local, local
from tests.support.simulators import LocalModels
from tests.support.sockets import connection


async def ask(gateway: Local, dialect: Dialect, key: str, tag: str = "", **headers: str) -> tuple[int, Any]:
    """(status, answer) of a small call with these headers."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            gateway.url + dialect.path,
            json=dialect.body(f"output=5 tag={tag}" if tag else "output=5"),
            headers=dialect.headers(key, **headers),
        ) as answer,
    ):
        return answer.status, orjson.loads(await answer.read())


async def service_key(gateway: Local, **options: Any) -> str:
    """A key that acts for any account; or, with options, one bound to a user or team."""
    key = new_key()
    await gateway.worker.store.keys.create(
        digest=KeyHasher(gateway.installation.secret).digest(key),
        prefix=display_prefix(key),
        now_ms=gateway.worker.gateway.quota.clock.now_ms(),
        **options,
    )
    return key


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_service_key_acts_for_the_account_it_names_by_either_name(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    key = await service_key(gateway)
    _, account = await gateway.account("pro", external_id="customer-7")
    _, other = await gateway.account("pro", external_id="customer-8")
    for tag, name in (("own", account.id), ("external", "customer-7")):
        assert (await ask(gateway, dialect, key, tag, tollgate_account=name))[0] == 200
    entries = [*await models.journal.ended("own"), *await models.journal.ended("external")]
    await assert_settled_to(gateway, account.id, sum(tokens_served(entry) for entry in entries) * STEPS)
    assert not await usage_rows(gateway, other.id)


async def test_an_account_that_a_key_may_not_see_is_as_unknown_as_one_that_is_not_there(
    gateway: Local, models: LocalModels
) -> None:
    """Nobody learns which names exist."""
    member, _ = await gateway.account("pro", external_id="mine")
    _, foreign = await gateway.account("pro", external_id="theirs")
    service = await service_key(gateway)
    answers = []
    for key, name in (
        (member, foreign.id),
        (member, "theirs"),
        (member, "no-such-account"),
        (service, "no-such-account"),
        (service, "019a0000-0000-7000-8000-000000000000"),
    ):
        status, answer = await ask(gateway, CHAT, key, tollgate_account=name)
        assert status == 404, name
        answer["error"].pop("request_id")
        answers.append(answer)
    assert all(answer == answers[0] for answer in answers)
    status, answer = await ask(gateway, CHAT, service)
    assert (status, CHAT.error_code(answer)) == (404, "account_not_found")
    assert "Tollgate-Account" in answer["error"]["message"]
    assert not await models.journal.entries()
    assert (await ask(gateway, CHAT, member, tollgate_account="mine"))[0] == 200


async def test_a_user_is_made_on_first_sight_and_known_again(gateway: Local) -> None:
    key, account = await gateway.account("pro")
    for name in ("ann", "bob", "ann", "Zoë 漢字"):
        assert (await ask(gateway, CHAT, key, tollgate_user=name))[0] == 200
    await gateway.settled()
    users = {user.external_id: user.id for user in (await gateway.worker.store.members.list_users(account.id)).items}
    assert set(users) == {"ann", "bob", "Zoë 漢字"}
    rows = await usage_rows(gateway, account.id)
    assert sorted(row["user_id"] for row in rows) == sorted([users["ann"], *users.values()])


async def test_no_account_makes_users_without_end(
    gateway: Local, models: LocalModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "USERS_SEEN_MAX", 2)
    key, account = await gateway.account("pro")
    statuses = [(await ask(gateway, CHAT, key, tollgate_user=f"user-{number}"))[0] for number in (1, 2, 3, 4, 1)]
    assert statuses == [200, 200, 400, 400, 200]
    _, answer = await ask(gateway, CHAT, key, tollgate_user="user-5")
    assert CHAT.error_code(answer) == "too_many_users"
    assert len((await gateway.worker.store.members.list_users(account.id)).items) == 2
    assert len(await models.journal.entries()) == 3


async def test_a_key_that_is_bound_to_a_user_stays_that_users(gateway: Local) -> None:
    _, account = await gateway.account("pro")
    now_ms = gateway.worker.gateway.quota.clock.now_ms()
    user = await gateway.worker.store.members.create_user(account.id, "Ann", external_id="ann", now_ms=now_ms)
    key = await service_key(gateway, account_id=account.id, user_id=user.id)
    assert (await ask(gateway, CHAT, key, tollgate_user="bob"))[0] == 200
    await gateway.settled()
    assert [row["user_id"] for row in await usage_rows(gateway, account.id)] == [user.id]


async def test_a_team_must_exist_before_it_is_named(gateway: Local) -> None:
    """A misspelled team would spend past its budget."""
    key, account = await gateway.account("pro")
    now_ms = gateway.worker.gateway.quota.clock.now_ms()
    team = await gateway.worker.store.members.create_team(account.id, "Red", external_id="red", now_ms=now_ms)
    for name in ("red", team.id):
        assert (await ask(gateway, CHAT, key, tollgate_team=name))[0] == 200
    status, answer = await ask(gateway, CHAT, key, tollgate_team="rde")
    assert (status, CHAT.error_code(answer), answer["error"]["param"]) == (404, "not_found", "Tollgate-Team")
    await gateway.settled()
    assert {row["team_id"] for row in await usage_rows(gateway, account.id)} == {team.id}


async def test_what_a_call_was_for_is_recorded(gateway: Local) -> None:
    key, account = await gateway.account("pro")
    metadata = '{"order": 17, "tags": ["a", "ü"], "big": 12345678901234567}'
    status, _ = await ask(
        gateway,
        CHAT,
        key,
        tollgate_job="import-2026-11",
        tollgate_job_type="nightly",
        tollgate_metadata=metadata,
        tollgate_feature="job",
    )
    assert status == 200
    await gateway.settled()
    (row,) = await usage_rows(gateway, account.id)
    assert (row["job"], row["job_type"], row["feature"]) == ("import-2026-11", "nightly", "job")
    assert orjson.loads(row["metadata"]) == orjson.loads(metadata)
    assert (row["wallet"], row["charged"]) == ("uses", 1)


BAD_HEADERS = [
    # (header, value, reason)
    ("tollgate-feature", "no-such-feature", "unknown_feature"),
    ("tollgate-feature", "", "unknown_feature"),
    ("tollgate-user", "", "invalid_header"),
    ("tollgate-user", "x" * 201, "invalid_header"),
    ("tollgate-team", "x" * 201, "invalid_header"),
    ("tollgate-account", "x" * 300, "invalid_header"),
    ("tollgate-job", "x" * 257, "invalid_header"),
    ("tollgate-job-type", "x" * 257, "invalid_header"),
    ("tollgate-metadata", "not json", "invalid_header"),
    ("tollgate-metadata", "[1]", "invalid_header"),
    ("tollgate-metadata", '"text"', "invalid_header"),
    ("tollgate-metadata", '{"a":' + "[" * 300 + "]" * 300 + "}", "invalid_header"),
    ("tollgate-metadata", '{"a":"' + "x" * 2048 + '"}', "invalid_header"),
    ("tollgate-metadata", '{"a":"' + "ü" * 1030 + '"}', "invalid_header"),
    ("tollgate-metadata", '{"a":"\\ud800"}', "invalid_header"),
]
RAW = ("tollgate-user", "tollgate-team", "tollgate-account", "tollgate-job", "tollgate-job-type", "tollgate-metadata")


async def test_a_header_of_ours_that_is_not_right_is_refused(gateway: Local, models: LocalModels) -> None:
    key, account = await gateway.account("pro")
    for name, value, reason in BAD_HEADERS:
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                gateway.url + CHAT.path, json=CHAT.body(), headers={**CHAT.headers(key), name: value}
            ) as answer,
        ):
            body = orjson.loads(await answer.read())
            assert (answer.status, CHAT.error_code(body)) == (400, reason), (name, value[:40], body)
            assert body["error"]["param"].lower() == name, name
    assert not await models.journal.entries()
    assert not await usage_rows(gateway, account.id)


async def test_a_header_of_ours_that_is_no_text_is_refused(gateway: Local, models: LocalModels) -> None:
    """It could not be written down: neither into SQL nor into a usage record."""
    key = await gateway.key("pro")
    for name in RAW:
        request = CHAT.request(key, CHAT.body(), **{name: "PLACE"}).replace(b"PLACE", b'{"a":"\xff\xfe"}')
        async with connection(gateway.url) as client:
            client.send(request)
            assert (await client.head()).status == 400, name
            assert CHAT.error_code(orjson.loads(await client.rest())) == "invalid_header", name
    assert not await models.journal.entries()


PLANS = """\
  peruser: {label: PerUser, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 100000},
            limits: {user: {requests_per_minute: 2}}}
"""


async def test_each_user_has_limits_of_his_own(models: LocalModels, valkey_url: str, tmp_path: Path) -> None:
    async with local(models.url, valkey_url, tmp_path, plans=PLANS) as gateway:
        key = await gateway.key("peruser")
        statuses = [
            (await ask(gateway, CHAT, key, tollgate_user=name))[0]
            for name in ("ann", "ann", "ann", "bob", "bob", "bob")
        ]
        assert statuses == [200, 200, 429, 200, 200, 429]


@pytest.mark.parametrize(
    ("meter", "feature", "status"),
    [
        ("uses", "general", 200),  # no card prices it: only its own features spend it
        ("uses", "job", 429),
        ("tokens", "job", 429),  # a card does: the call's tokens count, whichever wallet pays
        ("tokens", "general", 429),
    ],
)
async def test_e5_a_teams_budget_counts_what_is_spent_of_its_meter_and_nothing_else(
    meter: str, feature: str, status: int, gateway: Local
) -> None:
    key, account = await gateway.account("pro")
    worker = gateway.worker
    members, now_ms = worker.store.members, worker.gateway.quota.clock.now_ms()
    team = await members.create_team(account.id, "Night shift", now_ms=now_ms, external_id="night")
    period = parse_period("30d")
    await members.set_budget("team", team.id, meter=meter, amount=0, period=period, now_ms=now_ms)
    answered, _ = await ask(gateway, CHAT, key, tollgate_team="night", tollgate_feature=feature)
    assert answered == status
    assert (await ask(gateway, CHAT, key, tollgate_feature=feature))[0] == 200


async def test_a_budget_is_spent_in_its_own_meter_whatever_the_wallet_is_charged_in(gateway: Local) -> None:
    """One use pays the call; the team's tokens are counted by the model's card."""
    key, account = await gateway.account("pro")
    worker = gateway.worker
    members, now_ms = worker.store.members, worker.gateway.quota.clock.now_ms()
    team = await members.create_team(account.id, "Night shift", now_ms=now_ms, external_id="night")
    await members.set_budget(
        "team", team.id, meter="tokens", amount=10**9, period=parse_period("30d"), now_ms=now_ms
    )  # fmt: skip
    assert (await ask(gateway, CHAT, key, tollgate_team="night", tollgate_feature="job"))[0] == 200
    await gateway.settled()
    (row,) = await usage_rows(gateway, account.id)
    ((_, _, spent),) = orjson.loads(row["budgets"])
    assert (row["wallet"], row["charged"], spent) == ("uses", 1, (row["input"] + row["output"]) * STEPS)
