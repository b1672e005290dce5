"""What reserve admits, what it takes, and how it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from limits.errors import ScriptRejected
from limits.model import (
    AMOUNT_MAX,
    Demand,
    Late,
    Overloaded,
    Reauth,
    Refused,
    Reserved,
    Scope,
    ScopeKind,
    Stale,
    Take,
    Turn,
    Verdict,
    Warming,
)
from tests.support.lab import (
    ACCOUNT,
    DAY_MS,
    HERE,
    HOUR_MS,
    KEY,
    MINUTE_MS,
    NOW_MS,
    TEAM,
    USER,
    Lab,
    budget,
    concurrency,
    together,
    wallet,
    window,
)

# --- what is unknown is never zero ---------------------------------------------------------------------------------


async def test_an_unknown_account_is_stale_under_the_first_callers_ticket(lab: Lab) -> None:
    assert await lab.engine.reserve(lab.request(wallet(1)), ticket="first") == Stale("first")
    assert await lab.engine.reserve(lab.request(wallet(1)), ticket="second") == Stale("first")


async def test_a_wallet_without_grants_has_nothing_to_give(lab: Lab) -> None:
    await lab.ready()
    answer = await lab.ask(wallet(1))
    assert isinstance(answer, Refused) and (answer.verdict, answer.limit) == (Verdict.LASTING, 0)


# --- grants --------------------------------------------------------------------------------------------------------


async def test_grants_burn_by_priority_then_earliest_expiry_then_oldest(lab: Lab) -> None:
    order = [
        lab.grant(10, priority=2),
        lab.grant(10, priority=1),
        lab.grant(10, priority=1, expires_at_ms=NOW_MS + 2 * DAY_MS),
        lab.grant(10, priority=1, expires_at_ms=NOW_MS + DAY_MS),
        lab.grant(10, priority=1),
    ]
    await lab.ready()
    hold = await lab.hold(wallet(45))
    amounts = dict.fromkeys(order, 10) | {order[0]: 5}
    assert hold.takes == tuple(
        Take("tokens", n, amounts[n]) for n in (order[3], order[2], order[1], order[4], order[0])
    )


@pytest.mark.parametrize(
    ("starts_in_ms", "expires_in_ms", "usable"),
    [
        (0, 1, True),  # expires in a millisecond
        (0, 0, False),  # expires now
        (0, -1, False),
        (1, DAY_MS, False),  # starts in a millisecond
        (-1, DAY_MS, True),
    ],
)
async def test_only_an_open_grant_counts(lab: Lab, starts_in_ms: int, expires_in_ms: int, usable: bool) -> None:
    lab.grant(10, starts_at_ms=NOW_MS - DAY_MS, expires_at_ms=NOW_MS + DAY_MS)
    lab.advance(-DAY_MS)  # load while everything is still ahead, so that Redis must notice by itself
    lab.grant(90, starts_at_ms=NOW_MS + starts_in_ms, expires_at_ms=NOW_MS + expires_in_ms)
    await lab.ready()
    lab.advance(DAY_MS)
    assert isinstance(await lab.ask(wallet(50)), Reserved) == usable
    assert (await lab.wallet()).capacity == (100 if usable else 10)


async def test_available_counts_what_other_grants_overran(lab: Lab) -> None:
    """Actual above the hold falls on its last grant; the next admission sees it."""
    await lab.ready(10, 100)
    hold = await lab.hold(wallet(10))
    await lab.settle(hold, 60)
    assert (await lab.wallet()).available == 50
    answer = await lab.ask(wallet(51))
    assert isinstance(answer, Refused) and (answer.verdict, answer.available) == (Verdict.LASTING, 50)
    assert (await lab.hold(wallet(50))).takes == (Take("tokens", 2, 50),)


async def test_what_comes_back_to_an_earlier_grant_is_used_first_again(lab: Lab) -> None:
    await lab.ready(10, 10)
    first, second = await lab.hold(wallet(8)), await lab.hold(wallet(8))
    assert second.takes == (Take("tokens", 1, 2), Take("tokens", 2, 6))
    await lab.engine.release(first)
    assert (await lab.hold(wallet(9))).takes == (Take("tokens", 1, 8), Take("tokens", 2, 1))


@pytest.mark.parametrize("step_ms", [2_000, -2_000])
async def test_what_ends_while_a_grant_is_over_or_ahead_counts_when_the_clock_goes_back(lab: Lab, step_ms: int) -> None:
    await lab.ready()
    lab.grant(50, starts_at_ms=NOW_MS - 1_000, expires_at_ms=NOW_MS + 1_000)
    await lab.ready(100)
    first, second = await lab.hold(wallet(40)), await lab.hold(wallet(40))
    lab.advance(step_ms)
    await lab.settle(first, 25)
    await lab.engine.release(second)
    lab.advance(-step_ms)
    assert (await lab.reserved(wallet(0))).wallets[0].available == 125


async def test_a_hold_of_nothing_names_the_first_open_grant(lab: Lab) -> None:
    await lab.ready(10, 10)
    assert (await lab.hold(wallet(0))).takes == (Take("tokens", 1, 0),)


async def test_amounts_are_exact_up_to_the_largest(lab: Lab) -> None:
    await lab.ready(AMOUNT_MAX)
    hold = await lab.hold(wallet(AMOUNT_MAX - 1))
    assert (await lab.wallet()).available == 1
    await lab.settle(hold, AMOUNT_MAX - 2)
    assert (await lab.wallet()).available == 2
    assert (await lab.grants())[1].pending == AMOUNT_MAX - 2


async def test_grants_beyond_what_is_exact_are_not_loaded(lab: Lab) -> None:
    lab.grant(AMOUNT_MAX)
    lab.grant(1)
    with pytest.raises(ScriptRejected, match="out of range"):
        await lab.load()


# --- refusals ------------------------------------------------------------------------------------------------------

# (1 grant of 100; spent 40, held 30), needed, verdict
WALLET_REFUSALS = [
    (31, 0, Verdict.HELD),  # 31 of the 60 unspent, 30 of which are free
    (60, 0, Verdict.HELD),
    (61, 0, Verdict.LASTING),
    (100, 0, Verdict.LASTING),
    (101, 0, Verdict.TOO_LARGE),
    (1, 31, Verdict.HELD),  # the minimum balance
    (1, 61, Verdict.LASTING),
    (1, 101, Verdict.LASTING),  # the call itself would fit
]


@pytest.mark.parametrize(("amount", "minimum", "verdict"), WALLET_REFUSALS)
async def test_a_wallet_says_why_and_how_much(lab: Lab, amount: int, minimum: int, verdict: Verdict) -> None:
    await lab.ready(100)
    await lab.settle(await lab.hold(wallet(40)), 40)
    await lab.hold(wallet(30))
    answer = await lab.ask(wallet(amount, minimum=minimum))
    assert answer == Refused(
        verdict=verdict, slot="wallet", scope=None, meter="tokens", limit=100, used=40, held=30,
        needed=max(amount, minimum), available=30, resets_at_ms=0, server_ms=NOW_MS,
    )  # fmt: skip


# (budget of 100; spent 40, held 30)
@pytest.mark.parametrize(
    ("amount", "verdict"),
    [(31, Verdict.HELD), (60, Verdict.HELD), (61, Verdict.LASTING), (100, Verdict.LASTING), (101, Verdict.TOO_LARGE)],
)
async def test_a_budget_says_why_and_how_much(lab: Lab, amount: int, verdict: Verdict) -> None:
    await lab.ready(10_000)
    both = together(wallet(40), budget(40, 100))
    await lab.settle(await lab.hold(both), 40)
    await lab.hold(together(wallet(30), budget(30, 100)))
    answer = await lab.ask(together(wallet(1), budget(amount, 100)))
    assert answer == Refused(
        verdict=verdict, slot="budget", scope=KEY, meter="tokens", limit=100, used=40, held=30,
        needed=amount, available=30, resets_at_ms=NOW_MS + 30 * DAY_MS, server_ms=NOW_MS,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("demand", "verdict", "resets_in_ms"),
    [
        (window(1, 3), Verdict.RATE, MINUTE_MS),
        (window(4, 3), Verdict.TOO_LARGE, MINUTE_MS),
        (window(1, 3, name="uses", length_ms=HOUR_MS), Verdict.LASTING, HOUR_MS),  # a minute's wait is no help
    ],
)
async def test_a_full_window_says_until_when(lab: Lab, demand: Demand, verdict: Verdict, resets_in_ms: int) -> None:
    await lab.ready()
    filled = replace(demand.windows[0], amount=3)
    await lab.hold(Demand(windows=(filled,)))
    answer = await lab.ask(demand)
    assert isinstance(answer, Refused)
    assert (answer.verdict, answer.slot, answer.scope) == (verdict, demand.windows[0].name, KEY)
    assert (answer.limit, answer.used, answer.available) == (3, 3, 0)
    assert answer.resets_at_ms == NOW_MS + resets_in_ms


async def test_concurrency_counts_live_holds(lab: Lab) -> None:
    await lab.ready()
    holds = [await lab.hold(concurrency(2)), await lab.hold(concurrency(2))]
    answer = await lab.ask(concurrency(2))
    assert isinstance(answer, Refused)
    assert (answer.verdict, answer.slot, answer.held) == (Verdict.CONCURRENCY, "concurrency", 2)
    await lab.engine.release(holds[0])
    await lab.hold(concurrency(2))
    answer = await lab.ask(concurrency(0))
    assert isinstance(answer, Refused) and answer.verdict is Verdict.TOO_LARGE


# Each case: what refuses together, and whose reason is told.
PRECEDENCE = [
    # A lasting reason beats a passing one, however narrow.
    (together(wallet(5_000), window(1, 0, scope=KEY)), ("requests", KEY)),  # both lasting: the narrower
    (together(wallet(5_000), concurrency(1, scope=KEY)), ("wallet", None)),
    (together(budget(500, 400, scope=TEAM), concurrency(1, scope=KEY)), ("budget", TEAM)),
    # Of lasting ones the narrowest scope.
    (together(wallet(5_000), budget(500, 400, scope=TEAM)), ("budget", TEAM)),
    (
        together(budget(500, 400, number=1, scope=TEAM), budget(500, 400, number=2, scope=KEY)),
        ("budget", KEY),
    ),
    # Of passing ones too.
    (together(concurrency(1, scope=HERE), concurrency(1, scope=USER)), ("concurrency", USER)),
    # Of equals the first.
    (together(budget(500, 400, scope=KEY), window(9, 5, scope=KEY)), ("budget", KEY)),
]


@pytest.mark.parametrize(("demand", "told"), PRECEDENCE)
async def test_the_deciding_reason_is_told(lab: Lab, demand: Demand, told: tuple[str, Scope | None]) -> None:
    await lab.ready(1_000)
    await lab.hold(together(*(concurrency(9, scope=scope) for scope in (HERE, USER, KEY))))
    answer = await lab.ask(demand)
    assert isinstance(answer, Refused) and (answer.slot, answer.scope) == told


async def test_a_refused_call_consumes_nothing(lab: Lab) -> None:
    await lab.ready(100)
    fits = together(wallet(10), budget(10, 100), window(1, 5), concurrency(3))
    await lab.hold(fits)
    before = await lab.view()
    for refused in (
        together(fits, wallet(5_000, name="credits")),
        together(fits, budget(9, 5, number=2)),
        together(fits, window(9, 5, name="tokens")),
        together(fits, concurrency(0, scope=TEAM)),
    ):
        assert isinstance(await lab.ask(refused), Refused)
    assert await lab.view() == before
    assert (await lab.reserved(fits)).windows == ((3, NOW_MS + MINUTE_MS),)


# --- windows and budgets in time -----------------------------------------------------------------------------------


async def test_a_window_is_aligned_to_its_first_use_and_rolls_forward_only(lab: Lab) -> None:
    await lab.ready()
    assert (await lab.reserved(window(2, 3))).windows == ((1, NOW_MS + MINUTE_MS),)
    lab.advance(MINUTE_MS - 1)
    assert (await lab.reserved(window(1, 3))).windows == ((0, NOW_MS + MINUTE_MS),)
    lab.advance(1)
    assert (await lab.reserved(window(1, 3))).windows == ((2, NOW_MS + 2 * MINUTE_MS),)
    lab.advance(-HOUR_MS)  # a clock that steps back wipes nothing
    assert (await lab.reserved(window(1, 3))).windows == ((1, NOW_MS + 2 * MINUTE_MS),)


async def test_windows_of_other_lengths_names_and_scopes_are_apart(lab: Lab) -> None:
    await lab.ready()
    demand = together(
        window(1, 5),
        window(2, 5, length_ms=HOUR_MS),
        window(3, 5, name="tokens"),
        window(4, 5, scope=TEAM),
    )
    left = [remaining for remaining, _ in (await lab.reserved(demand)).windows]
    assert left == [4, 3, 2, 1]


async def test_a_budgets_next_period_starts_at_zero(lab: Lab) -> None:
    await lab.ready(1_000)
    await lab.commit(await lab.settle(await lab.hold(together(wallet(90), budget(90, 100))), 90))
    assert isinstance(await lab.ask(together(wallet(20), budget(20, 100))), Refused)
    lab.advance(30 * DAY_MS)
    await lab.hold(together(wallet(20), budget(20, 100, starts_ms=lab.now_ms)))


async def test_a_budget_period_left_behind_is_refused(lab: Lab) -> None:
    """A caller with an old clock must not find an empty period that was full."""
    await lab.ready(1_000)
    await lab.hold(together(wallet(10), budget(10, 100, starts_ms=NOW_MS)))
    answer = await lab.ask(together(wallet(10), budget(10, 100, starts_ms=NOW_MS - 30 * DAY_MS)))
    assert isinstance(answer, Refused) and answer.verdict is Verdict.LASTING


async def test_many_budgets_of_one_account_stay_apart(lab: Lab) -> None:
    await lab.ready(10_000)
    demands = [budget(number, 1_000, number=number) for number in range(1, 40)]
    await lab.hold(together(wallet(1), *demands))
    held = {number: held for number, _, _, _, held in (await lab.view()).budgets}
    assert held == {number: number for number in range(1, 40)}


# --- before anything is written ------------------------------------------------------------------------------------


async def test_a_reserve_that_comes_too_late_does_nothing(lab: Lab) -> None:
    await lab.ready(100)
    assert await lab.ask(wallet(10), deadline_ms=NOW_MS - 1) == Late(NOW_MS)
    assert (await lab.view()).holds_open == 0
    await lab.hold(wallet(10), deadline_ms=NOW_MS)


async def test_another_revision_sends_the_caller_back(lab: Lab) -> None:
    await lab.ready(100)
    assert await lab.ask(wallet(10), rev=7) == Reauth(lab.ledger.book(ACCOUNT).rev)
    assert (await lab.view()).holds_open == 0


async def test_a_period_that_is_over_must_turn_first(lab: Lab) -> None:
    lab.ledger.book(ACCOUNT).turn_at_ms = NOW_MS + DAY_MS
    await lab.ready(100)
    await lab.hold(wallet(10))
    lab.advance(DAY_MS)
    assert await lab.ask(wallet(10)) == Turn(NOW_MS + DAY_MS, lab.now_ms)


async def test_a_full_outbox_admits_nobody_and_settles_everybody(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(outbox_max_entries=2)
    await lab.ready(100)
    holds = [await lab.hold(wallet(5)) for _ in range(4)]
    charges = [await lab.settle(hold, 5) for hold in holds[:3]]
    assert await lab.ask(wallet(5)) == Overloaded(3)
    await lab.settle(holds[3], 5)
    for charge in charges[:2]:
        await lab.commit(charge)
    await lab.hold(wallet(5))


async def test_an_outbox_that_nobody_drains_admits_nobody(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(outbox_max_age_ms=10_000)
    await lab.ready(100)
    charge = await lab.settle(await lab.hold(wallet(5)), 5)
    lab.advance(9_999)
    await lab.hold(wallet(5))
    lab.advance(1)
    assert await lab.ask(wallet(5)) == Overloaded(1)
    await lab.commit(charge)
    await lab.hold(wallet(5))


async def test_a_partition_waits_for_live_holds_after_its_record_was_made(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(reassert_wait_ms=1_000)
    await lab.ready(100)
    answer = await lab.ask(wallet(5))
    assert isinstance(answer, Warming) and answer.until_ms == NOW_MS + 1_000
    lab.advance(1_000)
    record = (await lab.reserved(wallet(5))).record
    assert record == answer.record
    await lab.promote()
    assert isinstance(await lab.ask(wallet(5)), Stale)
    assert await lab.load()
    assert isinstance(await lab.ask(wallet(5)), Warming)


# --- again ---------------------------------------------------------------------------------------------------------


async def test_the_same_reserve_again_takes_nothing_and_answers_the_same(lab: Lab) -> None:
    await lab.ready(10, 100)
    demand = together(wallet(50), budget(50, 100), window(1, 5), window(9, 20, name="tokens"), concurrency(1))
    request = lab.request(demand)
    first = await lab.engine.reserve(request, ticket="")
    assert await lab.engine.reserve(request, ticket="") == first
    assert (await lab.wallet()).available == 60
    with pytest.raises(ScriptRejected, match="another hold"):
        await lab.engine.reserve(replace(request, demand=wallet(51)), ticket="")


# --- warnings ------------------------------------------------------------------------------------------------------


async def test_a_threshold_is_told_once_per_period(lab: Lab) -> None:
    warn_at = (500, 800, 1000)
    await lab.ready(100)
    await lab.settle(await lab.hold(wallet(60), warn_at=warn_at), 49)
    assert (await lab.reserved(wallet(1), warn_at=warn_at)).crossed == ()
    await lab.settle(await lab.hold(wallet(40), warn_at=warn_at), 36)
    told = await lab.reserved(wallet(1), warn_at=warn_at)
    assert told.crossed == (("tokens", 500), ("tokens", 800))
    assert (await lab.reserved(wallet(1), warn_at=warn_at)).crossed == ()
    lab.ledger.book(ACCOUNT).period_at_ms = lab.now_ms
    assert await lab.load()
    assert (await lab.reserved(wallet(1), warn_at=warn_at)).crossed == (("tokens", 500), ("tokens", 800))


async def test_the_last_threshold_is_told_by_the_refusal(lab: Lab) -> None:
    """Nobody is admitted any more to hear it."""
    await lab.ready(100)
    await lab.settle(await lab.hold(wallet(100)), 100)
    answer = await lab.ask(wallet(1), warn_at=(900, 1000))
    assert isinstance(answer, Refused) and answer.crossed == (("tokens", 900), ("tokens", 1000))
    answer = await lab.ask(wallet(1), warn_at=(900, 1000))
    assert isinstance(answer, Refused) and answer.crossed == ()


# --- what is not a demand ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "demand",
    [
        wallet(-1),
        wallet(AMOUNT_MAX + 1),
        wallet(1, name=""),
        together(wallet(1), wallet(2)),  # a slot twice
        together(budget(1, 5), budget(1, 5)),
        together(window(1, 5), window(2, 5)),
        together(concurrency(1), concurrency(1)),
        window(1, 5, name="moons"),
        window(1, 5, length_ms=1_500),
        wallet(1, name="w" * 300),
        together(*(wallet(n, name=f"w{n}") for n in range(128))),  # too many
        together(
            *(window(1, 5, scope=Scope(ScopeKind.USER, str(n))) for n in range(127)),
            *(wallet(0, name=f"w{n}") for n in range(127)),
        ),
        budget(1, 5, number=2**24),
    ],
)
async def test_what_is_not_a_demand_is_never_sent(lab: Lab, demand: Demand) -> None:
    with pytest.raises((ValueError, OverflowError)):
        await lab.ask(demand)


async def test_a_hold_id_is_the_text_of_a_uuid(lab: Lab) -> None:
    for wrong in ("", "x", "0" * 32, "not-a-uuid-at-all-but-of-its-length!"):
        with pytest.raises(ValueError, match=r"UUID|hexadecimal"):
            await lab.ask(wallet(1), hold_id=wrong)


@pytest.mark.parametrize("options", [{"lease_ms": 0}, {"lease_ms": 2**32}, {"deadline_ms": -1}, {"rev": -1}])
async def test_numbers_that_do_not_fit_are_never_sent(lab: Lab, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="no such lease"):
        await lab.ask(wallet(1), **options)


async def test_an_account_whose_name_fits_no_charge_is_never_admitted(lab: Lab) -> None:
    for account in ("", "a" * 256, "\u00fc" * 128):
        with pytest.raises(ValueError, match="bytes"):
            await lab.engine.reserve(replace(lab.request(wallet(1)), account=account), ticket="t")


# --- dry -----------------------------------------------------------------------------------------------------------


async def test_a_dry_reserve_says_what_a_real_one_would_and_takes_nothing(lab: Lab) -> None:
    await lab.ready(100)
    whole = together(wallet(60), budget(60, 90), window(1, 5), window(60, 90, name="tokens"), concurrency(2))
    for _ in range(3):
        dry = await lab.reserved(whole, dry=True)
        assert [view.available for view in dry.wallets] == [40]
        assert [left for left, _ in dry.windows] == [4, 30]
        assert dry.hold.takes and (await lab.view()).holds_open == 0
        assert (await lab.wallet()).available == 100 and (await lab.view()).budgets == ()
    real = await lab.reserved(whole)
    assert (real.wallets, real.hold.takes) == (dry.wallets, dry.hold.takes)
    refused = await lab.ask(whole, dry=True)
    assert refused == await lab.ask(whole) and isinstance(refused, Refused)


async def test_a_dry_reserve_gives_no_warning(lab: Lab) -> None:
    await lab.ready(100)
    await lab.settle(await lab.hold(wallet(95)), 95)
    assert (await lab.reserved(wallet(1), dry=True, warn_at=(900,))).crossed == ()
    assert (await lab.reserved(wallet(1), warn_at=(900,))).crossed == (("tokens", 900),)
