"""Alerts survive what dies between their raising and their arrival, and two servers on one store tell once."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp

from tests.support import receivers
from tests.support.calls import CHAT
from tests.support.gateways import Served, config_text, served
from tests.support.processes import eventually
from tests.support.receivers import Receiver
from tests.support.simulators import in_process

SECRET = "0123456789abcdef0123456789abcdef"


def text(models: str, receiver: Receiver, **changes: Any) -> str:
    alerts = (
        f"warn_at: [0.8, 0.9, 1.0], refused: true, low_balance: {{tokens: 50%}}, "
        f'webhook: {{url: "{receiver.url}", secret: "${{S:-{SECRET}}}"}}'
    )
    whole = config_text(models, alerts=alerts, **changes)
    return whole.replace("server: {", f'server: {{secret: "${{S:-{SECRET}}}", ', 1)


async def ask(server: Served, key: str, steering: str, *, bound: int = 100) -> int:
    body = CHAT.body(steering, **{CHAT.bound: bound})
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + CHAT.path, json=body, headers=CHAT.headers(key)) as answer,
    ):
        await answer.read()
        return answer.status


def trial_key(server: Served, name: str = "Acme") -> str:
    account = server.cli("accounts", "create", name, "--plan", "trial", "--external-id", name)
    return str(server.cli("keys", "create", account["id"])["key"])


def kinds(receiver: Receiver) -> list[str]:
    return sorted(call.json["type"].removeprefix("alert.") for call in receiver.received)


async def test_two_servers_on_one_store_tell_each_alert_once(
    valkey_url: str, postgres_url: str, tmp_path: Path
) -> None:
    async with in_process() as models, receivers.http() as receiver:
        whole = text(models.url, receiver, redis=valkey_url, database=postgres_url, workers=2)

        def start(name: str) -> Any:
            return served(tmp_path / name, whole)

        with start("one") as one, start("two") as two:
            key = await asyncio.to_thread(trial_key, one)
            assert await ask(one, key, "output=5700 overrun") == 200
            refused = await asyncio.gather(*(ask(each, key, "output=5", bound=5000) for each in (one, two) * 10))
            assert set(refused) == {429}
            expected = ["low_balance", "refused", "threshold", "threshold"]
            await eventually(lambda: len(receiver.received) >= len(expected), what="all alerts arrive", within_s=30)
            shown = await asyncio.to_thread(two.cli, "alerts", "list")
            assert sorted(each["kind"] for each in shown) == expected
        assert kinds(receiver) == expected
        assert len({call.id for call in receiver.received}) == len(expected)


async def test_an_alert_outlives_the_workers_that_raised_it(tmp_path: Path) -> None:
    """The receiver is down, and everything is killed; then all is well again."""
    async with in_process() as models, receivers.http() as receiver:
        receiver.next = ["500"] * 20
        with served(tmp_path, text(models.url, receiver, workers=1)) as server:
            key = await asyncio.to_thread(trial_key, server)
            assert await ask(server, key, "output=3500 overrun") == 200
            await eventually(lambda: bool(receiver.calls), what="a first attempt", within_s=30)
            os.kill(server.process.pid, signal.SIGKILL)
            server.process.wait()
        tried = {call.id for call in receiver.calls}
        receiver.next = []
        with served(tmp_path, text(models.url, receiver, workers=1)) as server:
            (found,) = await asyncio.to_thread(server.cli, "alerts", "list")
            assert found["kind"] == "low_balance"
            assert found["deliveries"][0]["state"] in ("pending", "sent")
            await eventually(lambda: bool(receiver.received), what="it arrives after all", within_s=30)
            assert {call.id for call in receiver.received} == tried

            async def told() -> bool:
                (found,) = await asyncio.to_thread(server.cli, "alerts", "list")
                return bool(found["deliveries"][0]["state"] == "sent")

            await eventually(told, what="it is known to")
