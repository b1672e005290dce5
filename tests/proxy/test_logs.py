"""What calls leave in the log: nothing while all goes well, one line without values when something of ours breaks."""

from __future__ import annotations

import logging
from typing import Any

import aiohttp
import pytest

from gateway.logs import JsonFormatter
from gateway.providers.registry import ADAPTERS
from tests.support.calls import CHAT, DIALECTS, Dialect
from tests.support.gateways import Local

CANARY = "canary-prompt-7d1f"


async def ask(gateway: Local, key: str, dialect: Dialect, steering: str = "output=5", **more: Any) -> int:
    body = dialect.body(steering, text=CANARY, **more)
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + dialect.path, json=body, headers=dialect.headers(key)) as answer,
    ):
        await answer.read()
        return answer.status


async def test_calls_that_go_well_or_are_refused_leave_no_line(
    gateway: Local, caplog: pytest.LogCaptureFixture
) -> None:
    pro, trial = await gateway.key("pro"), await gateway.key("trial")
    with caplog.at_level(logging.INFO):
        for dialect in DIALECTS:
            assert await ask(gateway, pro, dialect) == 200
            assert await ask(gateway, pro, dialect, stream=True) == 200
            assert await ask(gateway, pro, dialect, "status=400") == 400
            assert await ask(gateway, "tg_nobody", dialect) == 401
            assert await ask(gateway, trial, dialect, **{dialect.bound: 50_000}) == 429
        await gateway.settled()
    assert [record.getMessage() for record in caplog.records] == []


async def test_a_bug_of_ours_is_one_line_that_says_where_but_not_what_was_asked(
    gateway: Local, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(_: object, body: bytes, *__: object) -> None:
        raise ValueError(f"cannot read {body!r}")

    key = await gateway.key("pro")
    monkeypatch.setattr(type(ADAPTERS[CHAT.path]), "parse", parse)
    with caplog.at_level(logging.INFO):
        assert await ask(gateway, key, CHAT) == 500
        await gateway.settled()
    (record,) = caplog.records
    line = JsonFormatter().format(record)
    assert "ValueError" in line and "test_logs.py" in line
    assert CANARY not in line and key not in line
