"""When a wallet runs out if it goes on being used as lately.

The rule
1. Recent use is what was charged in the last ``RECENT_DAYS`` days, spread over the time since the first charge among
   it, at least one day. Without any the wallet lasts.
2. It goes on evenly, from the grants in burn order. What a grant has left at its end is lost; one that has not started
   counts from its start.
3. Each coming period of the plan brings its allowance, which ends with it; a plan that renews when paid is taken to be
   paid.
4. The first instant at which nothing is left is the answer; none within ``HORIZON_DAYS`` and ``REFILLS_MAX`` periods:
   it lasts.

Not here: what a wallet has and what was charged (``billing.outlook``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from typing import Final

from gateway.domain.accounts import Subscription
from gateway.domain.grants import PRIORITY, allowance
from gateway.domain.periods import DAY_MS, bounds
from gateway.domain.plans import Catalog
from gateway.domain.turns import refills_at_ms
from limits.values import dataclass

RECENT_DAYS: Final = 7
HORIZON_DAYS: Final = 366
REFILLS_MAX: Final = 400
_NEVER: Final = 2**63


@dataclass(frozen=True, slots=True)
class Pace:
    """``used`` steps in ``span_ms``."""

    used: int
    span_ms: int

    @property
    def per_day(self) -> int:
        """Steps, rounded half up."""
        return (2 * self.used * DAY_MS + self.span_ms) // (2 * self.span_ms)


@dataclass(frozen=True, slots=True)
class Left:
    """What a grant has left, in steps (negative: it owes), and when it counts; ``expires_at_ms`` 0 = never."""

    amount: int
    priority: int
    starts_at_ms: int
    expires_at_ms: int


def recent_since_ms(now_ms: int) -> int:
    return now_ms - RECENT_DAYS * DAY_MS


def pace_of(used: int, first_at_ms: int, now_ms: int) -> Pace:
    """From what was charged since ``recent_since_ms``, the first time at ``first_at_ms`` (rule 1)."""
    return Pace(max(0, used), max(DAY_MS, now_ms - first_at_ms))


def refills(catalog: Catalog, subscription: Subscription, wallet: str) -> Iterator[Left]:
    """What the plan grants the wallet from its next period on, period by period (rule 3)."""
    plan = catalog.plans.get(subscription.plan)
    at_ms = refills_at_ms(catalog, subscription)
    if plan is None or at_ms == 0:
        return
    amount = allowance(plan, subscription.terms).get(wallet, 0)
    while amount and at_ms:
        _, ends_ms = bounds(plan.period, subscription.anchor_at_ms, at_ms, plan.time_zone)
        yield Left(amount, PRIORITY[plan.grant_source], at_ms, ends_ms)
        at_ms = ends_ms


def runs_out_at_ms(grants: Sequence[Left], coming: Iterable[Left], pace: Pace, now_ms: int) -> int | None:
    """The first instant with nothing left; None: it lasts (rules 2 and 4)."""
    if pace.used == 0:
        return None
    rate = Fraction(pace.used, pace.span_ms)
    horizon_ms = now_ms + HORIZON_DAYS * DAY_MS
    ahead = list(islice(coming, REFILLS_MAX))
    if len(ahead) == REFILLS_MAX:
        horizon_ms = min(horizon_ms, ahead[-1].expires_at_ms)
    known = sorted([*grants, *ahead], key=lambda each: (each.priority, each.expires_at_ms or _NEVER))
    left = [Fraction(each.amount) for each in known]
    changes = sorted({at for each in known for at in (each.starts_at_ms, each.expires_at_ms) if now_ms < at})
    at_ms = now_ms
    for change_ms in (*(each for each in changes if each < horizon_ms), horizon_ms):
        opened = [place for place, each in enumerate(known) if _is_open(each, at_ms)]
        available, demand = sum((left[place] for place in opened), Fraction(0)), rate * (change_ms - at_ms)
        if available <= 0 or available < demand:
            return at_ms + max(0, int(available / rate))
        for place in opened:
            part = max(Fraction(0), min(left[place], demand))
            left[place] -= part
            demand -= part
        at_ms = change_ms
    return None


def _is_open(grant: Left, at_ms: int) -> bool:
    return grant.starts_at_ms <= at_ms and not 0 < grant.expires_at_ms <= at_ms
