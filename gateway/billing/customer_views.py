"""What the customer API answers besides the views that everybody shares, as plain objects with stable names.

Rules
1. As in ``views``: amounts are plain decimals as text, times RFC 3339 in UTC, null where there is none.
2. Where a meter says how many tokens a unit is, amounts stand beside what they are in tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import lcm

from gateway.billing.outlook import Forecast, Outlook, Standing, Use
from gateway.billing.reports import WalletBalance
from gateway.billing.views import View, account_view, balance_view, is_endless_wallet, quantity, when
from gateway.domain.plans import UNLIMITED, ByCard, Catalog, Feature, Fixed, PerThousandTokens, PerUse, Service
from gateway.domain.rates import RateCard
from gateway.domain.units import Meter, format_duration, plain

_PER = 1_000_000  # tokens: what card prices are told per


def standing_view(standing: Standing, catalog: Catalog, now_ms: int) -> View:
    """The balance, with what was used and what it all is in tokens."""
    balance = standing.balance
    view = balance_view(balance, catalog, now_ms)
    shown: list[View] = view["wallets"]  # type: ignore[assignment]
    wallets = [
        {**each, **_use_view(wallet, standing.use(wallet.wallet), catalog.meters.get(wallet.wallet))}
        for each, wallet in zip(shown, balance.wallets, strict=True)
    ]
    return {**view, "next_refresh_at": when(standing.refills_at_ms), "wallets": wallets}


def _use_view(wallet: WalletBalance, use: Use, meter: Meter | None) -> View:
    return {
        "unit": wallet.wallet if meter is None else meter.unit,
        "lifetime_used": quantity(meter, use.lifetime),
        "period_used": quantity(meter, use.period),
        "tokens": None if meter is None or meter.tokens_per_unit is None else _tokens_view(wallet, use, meter),
    }


def _tokens_view(wallet: WalletBalance, use: Use, meter: Meter) -> View:
    """The wallet's amounts in tokens; parts of a token are dropped."""
    endless = is_endless_wallet(wallet)
    return {
        "available": UNLIMITED if endless else meter.tokens(wallet.available),
        "granted": UNLIMITED if endless else meter.tokens(wallet.granted),
        "held": meter.tokens(wallet.held),
        "used": meter.tokens(wallet.used),
        "lifetime_used": meter.tokens(use.lifetime),
        "period_used": meter.tokens(use.period),
    }


def subscription_view(standing: Standing, catalog: Catalog, now_ms: int) -> View:
    """The account's place on its plan, with its terms, and what each wallet allows until when."""
    account = standing.balance.account
    subscription = account.subscription
    plan = catalog.plans.get(subscription.plan)
    terms = subscription.terms
    own = terms.get("allowance")
    allowances: Mapping[str, object] = own if isinstance(own, Mapping) else {}
    entitlements = terms.get("entitlements")
    known = account_view(account, catalog, now_ms)
    names = (
        "plan", "trial_starts_at", "trial_ends_at", "period_starts_at", "period_ends_at", "paid_until", "next_plan",
        "cancel_at_period_end",
    )  # fmt: skip
    return {
        "account": account.id,
        "status": known["subscription_status"],
        **{name: known[name] for name in names},
        "label": subscription.plan if plan is None else plan.label,
        "price": terms.get("price") or (None if plan is None else str(plan.price)),
        "currency": catalog.currency,
        "period": None if plan is None else str(plan.period),
        "renews": None if plan is None else plan.renews,
        "next_refresh_at": when(standing.refills_at_ms),
        "entitlements": {
            **({} if plan is None else plan.entitlements),
            **(entitlements if isinstance(entitlements, Mapping) else {}),
        },
        "terms": {
            "price": terms.get("price"),
            "allowance": {
                wallet: steps if not isinstance(steps, int) else quantity(catalog.meters.get(wallet), steps)
                for wallet, steps in allowances.items()
            },
        },
        "wallets": [_limit_view(each, catalog.meters.get(each.wallet)) for each in standing.balance.wallets],
    }


def _limit_view(wallet: WalletBalance, meter: Meter | None) -> View:
    endless = is_endless_wallet(wallet)
    return {
        "wallet": wallet.wallet,
        "limit": UNLIMITED if endless else quantity(meter, wallet.granted),
        "used": quantity(meter, wallet.used),
        "held": quantity(meter, wallet.held),
        "available": UNLIMITED if endless else quantity(meter, wallet.available),
        "overage_used": quantity(meter, sum(each.posted for each in wallet.grants if each.grant.source == "overage")),
        "resets_at": when(wallet.resets_at_ms),
    }


def forecast_view(forecast: Forecast, catalog: Catalog) -> View:
    return {
        "account": forecast.account.id,
        "next_refresh_at": when(forecast.refills_at_ms),
        "wallets": [_outlook_view(each, catalog.meters.get(each.wallet.wallet)) for each in forecast.wallets],
    }


def _outlook_view(outlook: Outlook, meter: Meter | None) -> View:
    return {
        "wallet": outlook.wallet.wallet,
        "available": UNLIMITED if is_endless_wallet(outlook.wallet) else quantity(meter, outlook.wallet.available),
        "used_recently": quantity(meter, outlook.pace.used),
        "per_day": quantity(meter, outlook.pace.per_day),
        "runs_out_at": None if outlook.runs_out_at_ms is None else when(outlook.runs_out_at_ms),
    }


def rates_view(catalog: Catalog) -> View:
    """What work costs: meters, cards, features and services."""
    meters = catalog.meters
    return {
        "currency": catalog.currency,
        "meters": [
            {
                "name": each.name,
                "unit": each.unit,
                "decimals": each.decimals,
                "tokens_per_unit": each.tokens_per_unit,
            }
            for each in meters.values()
        ],
        "cards": [card_view(each, meters[each.meter]) for each in catalog.cards.values()],
        "features": [feature_view(each, meters[each.wallet]) for each in catalog.features.values()],
        "services": [_service_view(each, meters[each.wallet]) for each in catalog.services.values()],
        "default_feature": catalog.default_feature,
    }


def card_view(card: RateCard, meter: Meter) -> View:
    """Exact prices ``per`` so many tokens: a million, or a multiple of it where a price has no end otherwise."""
    prices = {
        "input": card.input,
        "output": card.output,
        "cache_read": card.cache_read,
        "cache_write": card.cache_write,
        "cache_write_5m": card.cache_write_5m,
        "cache_write_1h": card.cache_write_1h,
        "reasoning": card.output if card.reasoning is None else card.reasoning,
    }
    per = _PER * lcm(*(_endless_part(each) for each in prices.values()))
    return {
        "name": card.name,
        "meter": card.meter,
        "version": card.version,
        "per": per,
        **{name: plain(price * per / meter.scale) for name, price in prices.items()},
        "request": plain(card.request / meter.scale),
    }


def _endless_part(price: Fraction) -> int:
    """What of a denominator makes a decimal go on for ever: all but its twos and fives."""
    rest = price.denominator
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    return rest


def feature_view(feature: Feature, meter: Meter) -> View:
    """``per_use``, ``per_1k_tokens`` or null beside ``rates``: exactly one prices it."""
    view: View = {"name": feature.name, "wallet": feature.wallet, "per_use": None, "bulk": [], "per_1k_tokens": None}
    view |= {"minimum": None, "rates": False}
    match feature.price:
        case PerUse(amount, bulk):
            steps = [{"from": each.start, "per_use": meter.format(each.per_use)} for each in bulk]
            return {**view, "per_use": meter.format(amount), "bulk": steps}
        case PerThousandTokens(rate, minimum):
            return {**view, "per_1k_tokens": meter.format(rate), "minimum": meter.format(minimum)}
        case ByCard():
            return {**view, "rates": True}
        case Fixed(amount):
            return {**view, "per_use": meter.format(amount)}


def _service_view(service: Service, meter: Meter) -> View:
    return {
        "name": service.name,
        "wallet": service.wallet,
        "per": service.per,
        "price": plain(Fraction(service.price) / meter.scale),
        "minimum_balance": meter.format(service.minimum_balance),
        "increment": None if service.increment_s is None else format_duration(service.increment_s),
    }
