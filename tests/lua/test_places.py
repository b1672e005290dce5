"""What lies at another place than usual: the grant that burns, a closed one between two open ones, a window."""

from __future__ import annotations

import pytest

from limits.model import Refused
from tests.support.lab import HOUR_MS, MINUTE_MS, NOW_MS, Lab, together, wallet, window


async def test_a_warning_told_by_a_refusal_forgets_nothing_of_the_grant_that_burnt_before(lab: Lab) -> None:
    """A grant begins and burns first; the call that finds it so crosses a threshold and is refused: of all it worked
    out only the warning is written, and that must be one piece."""
    old = lab.grant(100, priority=2)
    new = lab.grant(10, priority=1, starts_at_ms=NOW_MS + MINUTE_MS)
    assert await lab.load()
    await lab.commit(await lab.settle(await lab.hold(wallet(60)), 60))
    await lab.settle(await lab.hold(wallet(30)), 30)
    lab.advance(MINUTE_MS)
    answer = await lab.ask(wallet(50), warn_at=(800,))
    assert isinstance(answer, Refused) and answer.crossed == (("tokens", 800),)
    assert (answer.limit, answer.used, answer.available) == (110, 90, 20)
    grants = await lab.grants()
    assert (grants[old].counted, grants[old].pending, grants[new].held) == (60, 30, 0)
    assert await lab.drift() == {}
    hold = await lab.hold(wallet(20))
    assert [(take.number, take.amount) for take in hold.takes] == [(new, 10), (old, 10)]
    assert (await lab.wallet()).available == 0


@pytest.mark.parametrize(
    "closed",
    [
        pytest.param({"starts_at_ms": NOW_MS + 2 * HOUR_MS}, id="not begun"),
        pytest.param({"expires_at_ms": NOW_MS + HOUR_MS}, id="over"),
    ],
)
async def test_what_the_first_grant_cannot_bear_passes_over_a_closed_one(lab: Lab, closed: dict[str, int]) -> None:
    first = lab.grant(100, priority=1)
    between = lab.grant(100, priority=2, **closed)
    last = lab.grant(100, priority=3)
    assert await lab.load()
    lab.advance(HOUR_MS)
    hold = await lab.hold(wallet(150))
    assert [(take.number, take.amount) for take in hold.takes] == [(first, 100), (last, 50)]
    assert (await lab.grants())[between].held == 0
    assert (await lab.wallet()).available == 50
    await lab.engine.release(hold)
    assert {grant.held for grant in (await lab.grants()).values()} == {0}


@pytest.mark.parametrize("others", [1, 2, 3])
async def test_a_window_is_corrected_wherever_its_scope_has_it(lab: Lab, others: int) -> None:
    """A scope keeps its windows in the order of their first use, a hold in the order of its demand."""
    await lab.ready()
    tokens = window(100, 1_000, name="tokens")
    lengths = [window(1, 50, length_ms=(place + 1) * HOUR_MS) for place in range(others)]
    await lab.engine.release(await lab.hold(tokens))  # the first of its scope
    hold = await lab.hold(together(*lengths, tokens))
    await lab.settle(hold, 0, window_actuals=(*[None] * others, 30))
    answer = await lab.reserved(together(tokens, *lengths))
    assert [left for left, _ in answer.windows] == [1_000 - 30 - 100, *[50 - 2] * others]


async def test_a_window_that_redis_forgot_is_not_corrected(lab: Lab) -> None:
    """The hold came back by a renew, its windows did not: they begin anew."""
    await lab.ready()
    tokens = window(100, 1_000, name="tokens")
    hold = await lab.hold(together(window(1, 50), tokens))
    await lab.client.execute("FLUSHALL")
    await lab.engine.renew(0, [hold])
    await lab.settle(hold, 0, window_actuals=(None, 30))
    assert await lab.load()
    assert [left for left, _ in (await lab.reserved(tokens)).windows] == [900]
