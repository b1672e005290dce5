"""The whole installation at a glance, for operators: what is used most, and whose wallets run out soon.

Rules
1. At risk is a wallet of which ``USED_PERMILLE`` or more is used, or which runs out within ``SOON_DAYS`` by the rule of
   ``domain.forecast``. Unlimited wallets are not.
2. What is left is SQL's word: charges of the last tenth of a second may be missing, and what calls hold is not counted.
3. Reads only, in two queries over the charges of the time asked for; accounts are many, so the answer is cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from gateway.billing.desk import Desk
from gateway.billing.views import View, exactly, quantity, when
from gateway.domain import forecast
from gateway.domain.accounts import Account
from gateway.domain.forecast import Left, Pace
from gateway.domain.periods import DAY_MS
from gateway.domain.plans import Catalog
from gateway.domain.units import Meter, is_endless
from gateway.store.insight import FeatureUse, OpenGrant, Recent, UserUse

USED_PERMILLE: Final = 800
SOON_DAYS: Final = 7
SHOWN_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Risk:
    """A wallet that runs out soon; amounts in steps. ``runs_out_at_ms`` None: by its pace it lasts."""

    account: Account
    wallet: str
    granted: int
    used: int
    pace: Pace
    runs_out_at_ms: int | None

    @property
    def used_permille(self) -> int:
        return self.used * 1000 // self.granted if self.granted else 1000


@dataclass(frozen=True, slots=True)
class Insight:
    """``from_ms`` ≤ t < ``to_ms``: what ``features`` and ``users`` sum up, the largest first."""

    from_ms: int
    to_ms: int
    features: tuple[FeatureUse, ...]
    users: tuple[UserUse, ...]
    at_risk: tuple[Risk, ...]


class InsightService:
    """Looks over all accounts, or at one."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def look(self, account_ref: str | None, *, from_ms: int, to_ms: int, limit: int = 20) -> Insight:
        """Raises AccountNotFound, StoreUnavailable."""
        account = None if account_ref is None else await self._desk.account(account_ref)
        account_id = None if account is None else account.id
        store, now_ms = self._desk.store.insight, self._desk.now_ms()
        limit = min(limit, SHOWN_MAX)
        features = await store.features(account_id, from_ms=from_ms, to_ms=to_ms, limit=limit)
        users = await store.users(account_id, from_ms=from_ms, to_ms=to_ms, limit=limit)
        recent = await store.recent(account_id, since_ms=forecast.recent_since_ms(now_ms))
        grants = await store.open_grants(account_id, now_ms=now_ms)
        risks = await self._at_risk(recent, grants, now_ms, limit)
        return Insight(from_ms, to_ms, features, users, risks)

    async def _at_risk(
        self, recent: Iterable[Recent], grants: Iterable[OpenGrant], now_ms: int, limit: int
    ) -> tuple[Risk, ...]:
        """The most urgent first. Accounts are read only where the arithmetic says that they may be at risk."""
        paces = {(each.account_id, each.wallet): each for each in recent}
        wallets: dict[tuple[str, str], list[OpenGrant]] = {}
        for grant in grants:
            wallets.setdefault((grant.account_id, grant.wallet), []).append(grant)
        suspects = []
        for about, own in wallets.items():
            granted, used = sum(each.amount for each in own), sum(each.used for each in own)
            if granted <= 0 or is_endless(granted):
                continue
            found = paces.get(about)
            pace = forecast.pace_of(found.charged, found.first_at_ms, now_ms) if found else Pace(0, DAY_MS)
            left_days = (granted - used) // pace.per_day if pace.per_day > 0 else SOON_DAYS
            is_used = used * 1000 >= granted * USED_PERMILLE
            if is_used or left_days < SOON_DAYS:
                suspects.append((not is_used, left_days, about, granted, used, pace))
        risks = []
        for _, _, about, granted, used, pace in sorted(suspects)[: 2 * limit]:
            risk = await self._judged(*about, granted, used, pace, wallets[about], now_ms)
            if risk is not None:
                risks.append(risk)
        return tuple(risks[:limit])

    async def _judged(
        self, account_id: str, wallet: str, granted: int, used: int, pace: Pace, grants: list[OpenGrant], now_ms: int
    ) -> Risk | None:
        account = await self._desk.store.accounts.by_ref(account_id)
        if account is None:
            return None
        coming = forecast.refills(self._desk.catalog(), account.subscription, wallet)
        left = [Left(each.amount - each.used, each.priority, each.starts_at_ms, each.expires_at_ms) for each in grants]
        runs_out_ms = forecast.runs_out_at_ms(left, coming, pace, now_ms)
        is_soon = runs_out_ms is not None and runs_out_ms < now_ms + SOON_DAYS * DAY_MS
        if not is_soon and used * 1000 < granted * USED_PERMILLE:
            return None
        return Risk(account, wallet, granted, used, pace, runs_out_ms if is_soon else None)


def month_until(now_ms: int, from_ms: int | None, to_ms: int | None) -> tuple[int, int]:
    """The time asked for; by default the running month in UTC, up to now."""
    to_ms = now_ms + 1 if to_ms is None else to_ms
    if from_ms is None:
        month = datetime.fromtimestamp(min(to_ms, now_ms) / 1000, UTC).replace(
            day=1, hour=0, minute=0, second=0, microsecond=0
        )
        from_ms = int(month.timestamp()) * 1000
    return from_ms, to_ms


def insight_view(found: Insight, catalog: Catalog) -> View:
    meters = catalog.meters
    return {
        "from": exactly(found.from_ms),
        "to": exactly(found.to_ms),
        "features": [
            {
                "feature": each.feature,
                "wallet": each.wallet,
                "calls": each.calls,
                "charged": quantity(meters.get(each.wallet), each.charged),
                "tokens": each.tokens,
            }
            for each in found.features
        ],
        "users": [
            {
                "account": each.account_id,
                "user": each.user_id,
                "wallet": each.wallet,
                "calls": each.calls,
                "charged": quantity(meters.get(each.wallet), each.charged),
                "tokens": each.tokens,
            }
            for each in found.users
        ],
        "at_risk": [_risk_view(risk, meters.get(risk.wallet)) for risk in found.at_risk],
    }


def _risk_view(risk: Risk, meter: Meter | None) -> View:
    return {
        "account": risk.account.id,
        "name": risk.account.name,
        "external_id": risk.account.external_id,
        "plan": risk.account.subscription.plan,
        "wallet": risk.wallet,
        "granted": quantity(meter, risk.granted),
        "available": quantity(meter, risk.granted - risk.used),
        "used_percent": f"{risk.used_permille / 10:g}",
        "per_day": quantity(meter, risk.pace.per_day),
        "runs_out_at": None if risk.runs_out_at_ms is None else when(risk.runs_out_at_ms),
    }
