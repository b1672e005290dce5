"""What an account may expect: what it used so far, when its wallets are filled again, and when they run out.

Rules
1. Reads only. What is left comes from Redis, as the next call would find it; what was used from SQL, where a charge is
   within about a tenth of a second.
2. Lifetime use is the sum of all grants' use; the period's use that of the records since its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.billing.desk import Desk
from gateway.billing.reports import Balance, ReportService, WalletBalance
from gateway.domain import forecast
from gateway.domain.accounts import Account
from gateway.domain.forecast import Left, Pace
from gateway.domain.turns import refills_at_ms
from gateway.store.usage import Filter


@dataclass(frozen=True, slots=True)
class Use:
    """What a wallet's owner used, in steps; ``last_at_ms`` 0 = nothing yet."""

    lifetime: int = 0
    period: int = 0
    last_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """An account as it stands. ``refills_at_ms``: when the plan's next allowance comes, 0 = it does not."""

    balance: Balance
    uses: Mapping[str, Use]  # by wallet
    refills_at_ms: int

    def use(self, wallet: str) -> Use:
        return self.uses.get(wallet, Use())


@dataclass(frozen=True, slots=True)
class Outlook:
    """When a wallet runs out at its recent pace; None: it lasts."""

    wallet: WalletBalance
    pace: Pace
    runs_out_at_ms: int | None


@dataclass(frozen=True, slots=True)
class Forecast:
    account: Account
    wallets: tuple[Outlook, ...]
    refills_at_ms: int


class OutlookService:
    """Looks back and ahead."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def standing(self, account_ref: str) -> Standing:
        """What it has and what it used. Raises AccountNotFound, QuotaUnavailable, StoreUnavailable."""
        desk = self._desk
        balance = await ReportService(desk).balance(account_ref)
        account = balance.account
        since_ms = account.subscription.period_starts_at_ms
        period = await desk.store.usage.charged_since(account.id, since_ms)
        lifetime: dict[str, int] = {}
        last: dict[str, int] = {}
        for grant in balance.all_grants:
            lifetime[grant.wallet] = lifetime.get(grant.wallet, 0) + grant.used
            last[grant.wallet] = max(last.get(grant.wallet, 0), grant.charged_at_ms)
        uses = {
            wallet: Use(lifetime.get(wallet, 0), period.get(wallet, 0), last.get(wallet, 0))
            for wallet in {*lifetime, *period}
        }
        return Standing(balance, uses, refills_at_ms(desk.catalog(), account.subscription))

    async def forecast(self, account_ref: str) -> Forecast:
        """When each wallet runs out, by the rule in ``domain.forecast``. Raises as ``standing``."""
        desk = self._desk
        balance = await ReportService(desk).balance(account_ref)
        account, now_ms, catalog = balance.account, desk.now_ms(), desk.catalog()
        recent = await desk.store.usage.totals(account.id, Filter(from_ms=forecast.recent_since_ms(now_ms)))
        paces = {each.wallet: forecast.pace_of(each.charged, each.first_at_ms, now_ms) for each in recent}
        outlooks = []
        for wallet in balance.wallets:
            grants = [
                Left(
                    each.grant.amount - each.posted,
                    each.grant.priority,
                    each.grant.starts_at_ms,
                    each.grant.expires_at_ms,
                )
                for each in wallet.grants
            ]
            pace = paces.get(wallet.wallet) or forecast.pace_of(0, now_ms, now_ms)
            coming = forecast.refills(catalog, account.subscription, wallet.wallet)
            outlooks.append(Outlook(wallet, pace, forecast.runs_out_at_ms(grants, coming, pace, now_ms)))
        return Forecast(account, tuple(outlooks), refills_at_ms(catalog, account.subscription))
