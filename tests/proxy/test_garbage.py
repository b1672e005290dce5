"""A call leaves nothing behind that only the garbage collector could find: workers let it look seldom."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator

import aiohttp
import pytest

from gateway.quota.keys import new_key
from tests.support.calls import DIALECTS, Dialect
from tests.support.gateways import Local
from tests.support.simulators import LocalModels

CALLS = 20
STORE = "sqlalchemy."  # its caches make a few cycles once in a while, whatever is asked


@pytest.fixture
def kept() -> Iterator[None]:
    """The collector keeps what it finds, and finds it only when it is told to look."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
@pytest.mark.parametrize("how", ["whole", "streamed", "left", "refused", "broken off"])
async def test_a_call_leaves_no_cycles(
    how: str, dialect: Dialect, gateway: Local, models: LocalModels, request: pytest.FixtureRequest
) -> None:
    key = new_key() if how == "refused" else await gateway.key("drain")
    steering = "output=20" + (" reset=5" if how == "broken off" else "")
    body = dialect.body(steering, stream=how in ("streamed", "left", "broken off"))

    async def call(session: aiohttp.ClientSession) -> None:
        async with session.post(gateway.url + dialect.path, json=body, headers=dialect.headers(key)) as answer:
            if how == "left":
                await answer.content.readany()
                answer.close()
            else:
                await answer.read()

    async with aiohttp.ClientSession() as session:
        await call(session)
        await gateway.settled()
        request.getfixturevalue("kept")
        for _ in range(CALLS):
            await call(session)
        await gateway.settled()
        gc.collect()
    found = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage)
    if not any(name.startswith(STORE) for name in found):
        assert sum(found.values()) < CALLS, found.most_common(20)
