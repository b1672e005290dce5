"""What operators do through the admin API: the same services as the command line's, each act in the audit log."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from gateway.config.loading import parse
from gateway.config.shown import running as shown
from tests.support.apis import ADMIN_TOKEN, SECRET, Apis
from tests.support.configs import edited

AT = "/admin/v1/accounts"


async def made(running: Apis, **account: Any) -> dict[str, Any]:
    answer = await running.admin("POST", AT, json={"name": "Acme", "plan": "pro", **account})
    assert answer.status == 201, answer.body
    return answer.json()


async def found(running: Apis, query: str) -> list[str]:
    return [account["name"] for account in (await running.admin("GET", f"{AT}?{query}")).json()["items"]]


async def test_a_support_person_finds_an_account_by_any_part_of_its_names(running: Apis) -> None:
    await made(running, name="Acme Inc", email="Ann@Acme.example", external_id="org_7")
    await made(running, name="Bolt", email="bob@bolt.example", external_id="org-8", plan="trial")
    assert await found(running, "search=acme") == ["Acme Inc"]
    assert await found(running, "search=ANN@") == ["Acme Inc"]
    assert await found(running, "search=org") == ["Acme Inc", "Bolt"]
    assert await found(running, "search=org&plan=trial") == ["Bolt"]
    assert await found(running, "search=org_") == ["Acme Inc"], "a pattern's letters mean themselves"
    assert await found(running, "search=%25") == []
    assert await found(running, "status=suspended") == []
    by_mail = await running.admin("GET", f"{AT}/ann@acme.example")
    assert by_mail.json()["external_id"] == "org_7"


async def test_every_act_leaves_a_line_that_names_the_operator(running: Apis) -> None:
    account = await made(running)
    at = f"{AT}/{account['id']}"
    acts: list[tuple[str, str, Any, str]] = [
        ("PATCH", at, {"name": "Acme 2"}, "rename"),
        ("POST", f"{at}/suspend", {"reason": "unpaid"}, "set_status"),
        ("POST", f"{at}/resume", {}, "set_status"),
        ("POST", f"{at}/teams", {"name": "Crew", "external_id": "crew"}, "create_team"),
        ("POST", f"{at}/users", {"name": "Ann", "team": "crew"}, "create_user"),
        ("POST", f"{at}/keys", {"name": "laptop"}, "create_key"),
        ("POST", f"{at}/grants", {"amount": "5", "wallet": "tokens", "reason": "sorry"}, "grant"),
        ("POST", f"{at}/adjustments", {"amount": "-2", "wallet": "tokens"}, "adjust"),
        ("POST", f"{at}/budgets", {"scope": "team", "id": "crew", "meter": "tokens", "amount": "9"}, "set_budget"),
        ("DELETE", f"{at}/budgets/1", None, "remove_budget"),
        ("POST", f"{at}/subscription", {"plan": "cut"}, "subscribe"),
        ("POST", f"{at}/subscription/cancel", {}, "cancel"),
        ("POST", f"{at}/subscription/resume", None, "resume"),
        ("POST", f"{at}/subscription/extend", {"ends_at": "2100-01-01"}, "extend"),
        ("POST", f"{at}/packages", {"package": "small"}, "package"),
    ]
    for method, path, body, _ in acts:
        answer = await running.admin(method, path, json=body)
        assert answer.status < 300, (path, answer.body)
    lines = (await running.admin("GET", f"{at}/log?limit=50")).json()["items"]
    assert {line["actor"] for line in lines} == {"admin"}
    assert [line["action"] for line in reversed(lines)][1:] == [action for *_, action in acts]


async def test_what_is_granted_counts_and_what_is_revoked_is_gone(running: Apis) -> None:
    account = await made(running)
    at = f"{AT}/{account['id']}"
    before = await available(running, at)
    inexact = await running.admin("POST", f"{at}/grants", json={"amount": 1.5, "wallet": "tokens"})
    assert inexact.json()["error"]["message"].startswith('amount: expected a text such as "1.5" or an integer')
    grant = (await running.admin("POST", f"{at}/grants", json={"amount": "1.5", "wallet": "tokens"})).json()
    assert await available(running, at) == before + 1.5
    await running.admin("POST", f"{at}/grants/{grant['number']}/revoke", json={})
    assert await available(running, at) == before
    adjusted = (await running.admin("POST", f"{at}/adjustments", json={"amount": "-9", "wallet": "tokens"})).json()
    assert (adjusted["asked"], adjusted["adjusted"]) == ("-9", "-9")
    assert await available(running, at) == before - 9
    assert (await running.admin("POST", f"{at}/audit")).json()["differences"] == []
    moved = (await running.admin("GET", f"{at}/transactions?wallet=tokens&limit=2")).json()
    assert len(moved["items"]) == 2 and moved["next"] is not None
    nothing = await running.admin("GET", f"{at}/transactions?from=2001-01-01&to=2001-01-02")
    assert nothing.json() == {"items": [], "next": None}


async def available(running: Apis, at: str) -> float:
    wallets = (await running.admin("GET", f"{at}/balance")).json()["wallets"]
    return next(float(wallet["available"]) for wallet in wallets if wallet["wallet"] == "tokens")


async def test_a_key_works_until_it_is_rotated_away_or_revoked(running: Apis) -> None:
    account = await made(running)
    fresh = (await running.admin("POST", f"{AT}/{account['id']}/keys", json={})).json()
    assert (await running.get("/api/billing/plans", key=fresh["key"])).status == 200
    rotated = (await running.admin("POST", f"/admin/v1/keys/{fresh['id']}/rotate", json={"overlap": "1h"})).json()
    for key in (fresh["key"], rotated["key"]):
        assert (await running.get("/api/billing/plans", key=key)).status == 200
    for _ in range(2):
        revoked = await running.admin("POST", f"/admin/v1/keys/{rotated['id']}/revoke")
        assert (revoked.status, revoked.json()["status"]) == (200, "revoked")
    assert (await running.get("/api/billing/plans", key=rotated["key"])).status == 401
    listed = (await running.admin("GET", f"{AT}/{account['id']}/keys")).json()["items"]
    assert [key["id"] for key in listed] == [fresh["id"]]
    assert fresh["key"] not in str((await running.admin("GET", "/admin/v1/log")).json())


async def test_a_service_key_made_by_the_operator_acts_for_any_account(running: Apis) -> None:
    await made(running, external_id="org-1")
    service = (await running.admin("POST", "/admin/v1/keys", json={"name": "backend"})).json()
    assert service["service"] is True
    answer = await running.get("/api/billing/plans?account=org-1", key=service["key"])
    assert answer.status == 200


async def test_a_file_of_accounts_is_taken_whole_or_not_at_all(running: Apis) -> None:
    headers = {"Content-Type": "text/csv"}
    bad = await running.admin("POST", "/admin/v1/imports", data=b"name,plan\nOne,pro\nTwo,golden\n", headers=headers)
    assert (bad.status, bad.code) == (400, "invalid_request") and "row 3" in bad.json()["error"]["message"]
    assert await found(running, "limit=10") == []
    good = await running.admin("POST", "/admin/v1/imports", data=b"name,external_id\nOne,a\nTwo,b\n", headers=headers)
    assert [account["external_id"] for account in good.json()["items"]] == ["a", "b"]
    large = await running.admin("POST", "/admin/v1/imports", data=io.BytesIO(b"x" * (17 * 2**20)), headers=headers)
    assert large.status == 413


async def test_an_open_hold_is_seen_and_can_be_given_back(running: Apis) -> None:
    _, account = await running.gateway.account("pro")
    at = f"{AT}/{account.id}"
    hold = await running.held(account, 1_500)
    seen = (await running.admin("GET", f"{at}/holds")).json()["items"]
    assert [(each["id"], each["held"], each["first_byte"]) for each in seen] == [(hold, {"tokens": "1.5"}, False)]
    before = await available(running, at)
    assert (await running.admin("POST", f"{at}/holds/{hold}/release", json={"reason": "stuck"})).status == 200
    assert await available(running, at) == before + 1.5
    again = await running.admin("POST", f"{at}/holds/{hold}/release", json={})
    assert (again.status, again.code) == (404, "not_found")
    line = (await running.admin("GET", f"{at}/log?limit=1")).json()["items"][0]
    assert (line["action"], line["detail"]) == ("release_hold", {"hold": hold, "reason": "stuck"})


async def test_the_running_config_is_told_without_a_secret(one: Apis) -> None:
    answer = await one.admin("GET", "/admin/v1/config")
    config = answer.json()
    assert config["document"]["server"]["admin_token"] == "${TEST_ADMIN_TOKEN:-}"
    assert "pro" in config["document"]["plans"]
    for secret in (ADMIN_TOKEN, SECRET):
        assert secret.encode() not in answer.body
    upstreams = (await one.admin("GET", "/admin/v1/upstreams")).json()["items"]
    assert {each["name"]: (each["on"], each["breaker"]) for each in upstreams}["openai"] == (True, "closed")


SECRETS = [
    ('keys: ["${KEY:-}"]', 'keys: ["${KEY:-canary}"]', {}),
    ('keys: ["${KEY:-}"]', 'keys: ["${KEY}"]', {"KEY": "canary"}),
    ('keys: ["${KEY:-}"]', "keys_file: keys", {}),
    ("redis: embedded", 'redis: "redis://:${PASSWORD}@127.0.0.1:6379"', {"PASSWORD": "canary"}),
]


@pytest.mark.parametrize(("old", "new", "env"), SECRETS, ids=[new for _, new, _ in SECRETS])
def test_no_way_to_write_a_secret_shows_it(old: str, new: str, env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("canary\n")
    config = parse(edited(old, new).encode(), tmp_path / "config.yaml", env)
    assert "canary" not in str(shown(config)) and "pro" in str(shown(config))
