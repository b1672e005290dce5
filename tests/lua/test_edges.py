"""Laws of edges: the very millisecond, the very share, and that an end leaves nothing behind."""

from __future__ import annotations

import pytest

from limits import keys
from limits.model import Reserved
from tests.support.lab import NOW_MS, Lab, wallet


@pytest.mark.parametrize("event", ["starts", "ends"])
async def test_a_grant_counts_from_its_first_millisecond_to_its_last(lab: Lab, event: str) -> None:
    """Sums that were made while it was ahead, or open, are of no use from that very moment."""
    lab.grant(10)
    edge_ms = NOW_MS + 1_000
    lab.grant(90, **({"starts_at_ms": edge_ms} if event == "starts" else {"expires_at_ms": edge_ms}))
    await lab.ready()
    for now_ms in (NOW_MS, edge_ms - 1, edge_ms):
        lab.advance(now_ms - lab.now_ms)
        is_open = (now_ms < edge_ms) is (event == "ends")
        assert isinstance(await lab.ask(wallet(11), dry=True), Reserved) is is_open
        await lab.engine.release(await lab.hold(wallet(1)))


@pytest.mark.parametrize(("posted", "told"), [(799, ()), (800, (("tokens", 800),))])
async def test_a_threshold_is_reached_by_its_very_share(
    lab: Lab, posted: int, told: tuple[tuple[str, int], ...]
) -> None:
    await lab.ready(1_000)
    await lab.settle(await lab.hold(wallet(posted)), posted)
    assert (await lab.reserved(wallet(1), warn_at=(800,))).crossed == told


@pytest.mark.parametrize("end", ["settle", "release"])
async def test_a_hold_that_ended_has_no_lease(lab: Lab, end: str) -> None:
    await lab.ready(100)
    await lab.hold(wallet(1))
    before = await lab.client.execute("ZCARD", keys.leases_key(0))
    hold = await lab.hold(wallet(40))
    assert await lab.client.execute("ZCARD", keys.leases_key(0)) == before + 1
    if end == "settle":
        await lab.settle(hold, 25)
    else:
        await lab.engine.release(hold)
    assert await lab.client.execute("ZCARD", keys.leases_key(0)) == before
