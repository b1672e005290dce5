"""What services answer, as plain objects with stable names: the admin and billing APIs and the command line show these.

Rules
1. Amounts are plain decimals as text, times RFC 3339 in UTC as text, null where there is none.
2. A subscription is shown as it is now: a period that ended is shown turned, whether or not a call has noticed yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction

from gateway.billing.accounts import Holding
from gateway.billing.holds import InFlight
from gateway.billing.reports import Balance, WalletBalance
from gateway.domain.accounts import Account, Budget, GrantState, Subscription
from gateway.domain.ledger import Book
from gateway.domain.money import decimals_of, money
from gateway.domain.periods import rfc3339
from gateway.domain.plans import CUSTOM, UNLIMITED, Catalog, Limits, Overage, Plan, Prepay, Rollover, is_trial
from gateway.domain.proration import price_of
from gateway.domain.turns import Stay, decide
from gateway.domain.units import Meter, is_endless, plain
from gateway.domain.usage import Usage
from gateway.store.keys import Key
from gateway.store.ledger import AuditLine, Transaction
from gateway.store.members import Team, User
from gateway.store.subscriptions import Change
from gateway.store.usage import Total, UsageRecord

View = dict[str, object]


def when(at_ms: int) -> str | None:
    """An instant to the second, or null for never."""
    return rfc3339(at_ms) if at_ms else None


def exactly(at_ms: int) -> str:
    """An instant to the millisecond: when something happened."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def quantity(meter: Meter | None, steps: int) -> str:
    """An amount; of a meter that the config no longer has in its steps."""
    return str(steps) if meter is None else meter.format(steps)


def subscription_now(catalog: Catalog, subscription: Subscription, now_ms: int) -> Subscription:
    """As it is at this instant, turned where its period has ended."""
    decision = decide(catalog, subscription, now_ms)
    return subscription if isinstance(decision, Stay) else decision.subscription


def account_view(account: Account, catalog: Catalog, now_ms: int) -> View:
    subscription = subscription_now(catalog, account.subscription, now_ms)
    return {
        "id": account.id,
        "name": account.name,
        "external_id": account.external_id,
        "email": account.email,
        "status": account.status.value,
        "plan": subscription.plan,
        "subscription_status": subscription.status.value,
        "period_starts_at": when(subscription.period_starts_at_ms),
        "period_ends_at": when(subscription.period_ends_at_ms),
        "trial_starts_at": when(subscription.period_starts_at_ms) if subscription.trial_ends_at_ms else None,
        "trial_ends_at": when(subscription.trial_ends_at_ms),
        "entitlements": entitlements_of(catalog, subscription),
        "cancel_at_period_end": subscription.cancel_at_period_end,
        "next_plan": subscription.next_plan,
        "paid_until": when(subscription.paid_until_ms),
        "created_at": when(account.created_at_ms),
    }


def change_view(change: Change, catalog: Catalog, now_ms: int) -> View:
    """The account, when the change takes effect, and what is credited."""
    return {
        **account_view(change.account, catalog, now_ms),
        "effective_at": when(change.at_ms),
        "credit": money(change.credit, catalog.currency),
        "currency": catalog.currency,
    }


def entitlements_of(catalog: Catalog, subscription: Subscription) -> dict[str, object]:
    """What the plan carries, and the account's own terms before it."""
    plan = catalog.plans.get(subscription.plan)
    own = subscription.terms.get("entitlements")
    return {**(plan.entitlements if plan is not None else {}), **(own if isinstance(own, Mapping) else {})}


def holdings_view(wallets: Sequence[Holding], catalog: Catalog) -> list[View]:
    return [
        {
            "wallet": each.wallet,
            "limit": UNLIMITED if is_endless(each.limit) else quantity(catalog.meters.get(each.wallet), each.limit),
            "used": quantity(catalog.meters.get(each.wallet), each.used),
            "overage_used": quantity(catalog.meters.get(each.wallet), each.overage),
            "overage_due": money(each.due, catalog.currency),
        }
        for each in wallets
    ]


def team_view(team: Team) -> View:
    return {
        "id": team.id,
        "account": team.account_id,
        "name": team.name,
        "external_id": team.external_id,
        "created_at": when(team.created_at_ms),
    }


def user_view(user: User) -> View:
    return {
        "id": user.id,
        "account": user.account_id,
        "team": user.team_id,
        "name": user.name,
        "external_id": user.external_id,
        "email": user.email,
        "created_at": when(user.created_at_ms),
    }


def key_view(key: Key, now_ms: int) -> View:
    expired = 0 < key.expires_at_ms <= now_ms
    return {
        "id": key.id,
        "prefix": key.prefix,
        "name": key.name,
        "account": key.account_id,
        "service": key.account_id is None,
        "team": key.team_id,
        "user": key.user_id,
        "status": "revoked" if key.revoked_at_ms else "expired" if expired else "active",
        "created_at": when(key.created_at_ms),
        "expires_at": when(key.expires_at_ms),
        "revoked_at": when(key.revoked_at_ms),
    }


def budget_view(budget: Budget, meter: Meter | None, now_ms: int, used: int = 0) -> View:
    return {
        "number": budget.number,
        "scope": budget.scope,
        "id": budget.scope_id,
        "meter": budget.meter,
        "amount": quantity(meter, budget.amount),
        "raised": quantity(meter, budget.ceiling(now_ms) - budget.amount),
        "used": quantity(meter, used),
        "period": str(budget.period),
        "anchor_at": when(budget.anchor_at_ms),
        "time_zone": budget.time_zone,
    }


def grant_view(grant: GrantState, meter: Meter | None) -> View:
    return {
        "number": grant.number,
        "id": grant.id,
        "wallet": grant.wallet,
        "source": grant.source,
        "amount": quantity(meter, grant.amount),
        "used": quantity(meter, grant.used),
        "priority": grant.priority,
        "starts_at": when(grant.starts_at_ms),
        "expires_at": when(grant.expires_at_ms),
    }


def plan_view(plan: Plan, catalog: Catalog) -> View:
    return {
        "name": plan.name,
        "label": plan.label,
        "price": str(plan.price),
        "currency": catalog.currency,
        "period": str(plan.period),
        "renews": plan.renews,
        "allowance": {
            wallet: amount if isinstance(amount, str) else quantity(catalog.meters.get(wallet), amount)
            for wallet, amount in plan.allowance.items()
        },
        "ends": plan.ends,
        "overage": {wallet: _overage_view(extra, catalog, wallet) for wallet, extra in plan.overage.items()},
        "rollover": {wallet: _rollover_view(rule, catalog, wallet) for wallet, rule in plan.rollover.items()},
        "prepay": None if plan.prepay is None else _prepay_view(plan, plan.prepay, catalog),
        "debt": plan.debt,
        "trial": is_trial(catalog, plan),
        "entitlements": dict(plan.entitlements),
        "clamp": plan.clamp,
        "on_exhausted": plan.on_exhausted,
        "on_disconnect": plan.on_disconnect,
        "on_abandon": plan.on_abandon,
        "models": None if plan.models is None else list(plan.models),
        "features": None if plan.features is None else list(plan.features),
        "limits": {scope: _limits_view(limits) for scope, limits in plan.limits.items()},
        "default": plan.name == catalog.default_plan,
        "version": plan.version,
    }


def _overage_view(extra: Overage, catalog: Catalog, wallet: str) -> View:
    """``price`` is of one unit of the meter, exactly, or as a fraction where no decimal is exact."""
    meter = catalog.meters.get(wallet)
    unit = extra.price * (meter.scale if meter is not None else 1) / int(10 ** decimals_of(catalog.currency))
    return {"cap": quantity(meter, extra.cap), "price": plain(unit)}


def _rollover_view(rule: Rollover, catalog: Catalog, wallet: str) -> str:
    if rule.share is not None:
        return f"{plain(Fraction(rule.share) * 100)}%"
    return quantity(catalog.meters.get(wallet), rule.amount or 0)


def _prepay_view(plan: Plan, prepay: Prepay, catalog: Catalog) -> View:
    price = price_of(plan, {}, catalog.currency, prepaid=True)
    return {
        "periods": prepay.periods,
        "discount": f"{plain(Fraction(prepay.discount) * 100)}%",
        "price": CUSTOM if price is None else money(price, catalog.currency),
    }


def _limits_view(limits: Limits) -> View:
    known = {
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "concurrent": limits.concurrent,
        "uses": None if limits.uses is None else {"max": limits.uses.max, "per_s": limits.uses.per_s},
    }
    return {name: value for name, value in known.items() if value is not None}


def balance_view(balance: Balance, catalog: Catalog, now_ms: int) -> View:
    account = account_view(balance.account, catalog, now_ms)
    names = ("plan", "subscription_status", "period_starts_at", "period_ends_at", "trial_ends_at")
    return {
        "account": balance.account.id,
        **{name: account[name] for name in names},
        "holds_open": balance.holds_open,
        "wallets": [_wallet_view(wallet, catalog.meters.get(wallet.wallet)) for wallet in balance.wallets],
    }


def is_endless_wallet(wallet: WalletBalance) -> bool:
    return any(is_endless(each.grant.amount) for each in wallet.grants)


def _wallet_view(wallet: WalletBalance, meter: Meter | None) -> View:
    endless = is_endless_wallet(wallet)
    return {
        "wallet": wallet.wallet,
        "available": UNLIMITED if endless else quantity(meter, wallet.available),
        "held": quantity(meter, wallet.held),
        "used": quantity(meter, wallet.used),
        "granted": UNLIMITED if endless else quantity(meter, wallet.granted),
        "resets_at": when(wallet.resets_at_ms),
        "grants": [
            {
                **grant_view(each.grant, meter),
                "used": quantity(meter, each.posted),
                "held": quantity(meter, each.held),
                "available": UNLIMITED if is_endless(each.grant.amount) else quantity(meter, each.available),
            }
            for each in wallet.grants
        ],
    }


def total_view(total: Total, by: tuple[str, ...], meter: Meter | None) -> View:
    return {
        **dict(zip(by, total.group, strict=True)),
        "wallet": total.wallet,
        "calls": total.calls,
        "charged": quantity(meter, total.charged),
        "overrun": quantity(meter, total.overrun),
        "waived": quantity(meter, total.waived),
        **usage_tokens_view(total.usage),
        "last_at": exactly(total.last_at_ms),
    }


def usage_view(row: UsageRecord, meter: Meter | None) -> View:
    return {
        "id": row.hold_id,
        "seq": row.seq,
        "state": row.state,
        "at": exactly(row.at_ms),
        "started_at": exactly(row.created_at_ms),
        "month": row.month,
        "account": row.account_id,
        "team": row.team_id,
        "user": row.user_id,
        "key": row.key_id,
        "route": row.route,
        "model": row.model,
        "upstream": row.upstream,
        "plan": row.plan,
        "feature": row.feature,
        "job": row.job,
        "job_type": row.job_type,
        "wallet": row.wallet,
        "held": quantity(meter, row.held),
        "charged": quantity(meter, row.charged),
        "overrun": quantity(meter, row.overrun),
        "balance_after": quantity(meter, row.balance_after),
        "basis": row.basis.value,
        "card_version": row.card_version,
        **usage_tokens_view(row.usage),
        "status": row.status,
        "end": row.end,
        "metadata": dict(row.metadata),
        "shadow": row.shadow,
        "waived": quantity(meter, row.waived),
    }


def usage_tokens_view(usage: Usage) -> View:
    """Input is all of it, cached tokens included; output includes reasoning."""
    return {
        "input_tokens": usage.input_total,
        "cached_tokens": usage.cache_read,
        "cache_write_tokens": usage.cache_write_5m + usage.cache_write_1h + usage.cache_write,
        "output_tokens": usage.output,
        "reasoning_tokens": usage.reasoning,
        "total_tokens": usage.total,
    }


def transaction_view(row: Transaction, meter: Meter | None) -> View:
    """``amount`` is signed as the balance felt it."""
    sign = 1 if row.credit == Book.GRANT.value else -1
    return {
        "id": str(row.id),
        "at": exactly(row.at_ms),
        "wallet": row.wallet,
        "kind": row.kind,
        "amount": quantity(meter, sign * row.amount),
        "grant": row.grant,
        "reason": row.reason,
        "seq_first": row.seq_first or None,
        "seq_last": row.seq_last or None,
    }


def in_flight_view(each: InFlight, meters: Mapping[str, Meter]) -> View:
    return {
        "id": each.hold.hold_id,
        "started_at": exactly(each.hold.created_at_ms),
        "first_byte": each.hold.first_byte,
        "held": {wallet: quantity(meters.get(wallet), amount) for wallet, amount in each.held.items()},
    }


def audit_line_view(row: AuditLine) -> View:
    return {
        "id": str(row.id),
        "at": exactly(row.at_ms),
        "account": row.account_id,
        "actor": row.actor,
        "action": row.action,
        "detail": dict(row.detail),
    }
