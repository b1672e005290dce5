"""From a checked document to what the gateway runs on: settings, and the catalog with exact amounts.

Rules
1. Only a document without problems is built: nothing here can fail.
2. Versions are hashes of content: a card's of its prices, a plan's of what it promises. Words (labels) and ways of
   serving (clamp, disconnects) are no promise; changing them makes no new version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from gateway.config import schema
from gateway.config.model import Config, Settings, Upstream
from gateway.domain.alerts import AlertRules, Channels, LowMark, Mail, RapidUse, Spike, Webhook
from gateway.domain.money import decimals_of
from gateway.domain.plans import (
    Amount,
    BulkStep,
    ByCard,
    Catalog,
    Feature,
    Limits,
    Model,
    Overage,
    Package,
    PackageGrant,
    PerThousandTokens,
    PerUse,
    Plan,
    Prepay,
    Price,
    Rollover,
    Service,
    UsesLimit,
)
from gateway.domain.rates import RateCard
from gateway.domain.stripe import Access
from gateway.domain.units import Meter

Meters = Mapping[str, Meter]


def build(document: schema.Document, path: Path, data: bytes) -> Config:
    """The configuration of a document without problems; ``data`` is the file as read."""
    return Config(
        settings=_settings(document),
        catalog=_catalog(document),
        version=version_of(data),
        path=path,
    )


def version_of(data: bytes) -> str:
    """What identifies a file's content."""
    return hashlib.sha256(data).hexdigest()[:16]


def meters_of(document: schema.Document) -> dict[str, Meter]:
    return {
        name: Meter(name, meter.decimals, meter.name or "", meter.tokens_per_unit)
        for name, meter in document.meters.items()
    }


def card_of(name: str, card: schema.Card, meter: Meter) -> RateCard:
    """The card in meter steps per token; a price that it leaves out follows from the others, never from nothing."""
    step = Fraction(meter.scale, card.per)
    writes = [price for price in (card.cache_write_5m, card.cache_write_1h) if price is not None]
    write = card.cache_write if card.cache_write is not None else max((card.input, *writes))
    prices = {
        "input": card.input,
        "output": card.output,
        "cache_read": card.input if card.cache_read is None else card.cache_read,
        "cache_write": write,
        "cache_write_5m": write if card.cache_write_5m is None else card.cache_write_5m,
        "cache_write_1h": write if card.cache_write_1h is None else card.cache_write_1h,
    }
    exact = {kind: Fraction(price) * step for kind, price in prices.items()}
    reasoning = None if card.reasoning is None else Fraction(card.reasoning) * step
    request = Fraction(card.request) * meter.scale
    version = content_version([meter.name, meter.decimals, exact, reasoning, request])
    return RateCard(name=name, meter=meter.name, version=version, reasoning=reasoning, request=request, **exact)


def content_version(content: Any) -> str:
    """A short hash of plain data, the same for the same content in whatever order its keys come."""
    text = json.dumps(content, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _settings(document: schema.Document) -> Settings:
    server = document.server
    return Settings(
        listen=server.listen,
        admin=server.admin,
        admin_token=server.admin_token,
        workers=server.workers,
        secret=server.secret,
        lease_s=server.lease,
        connect_s=server.connect,
        first_byte_s=server.first_byte,
        idle_s=server.idle,
        drain_s=server.drain,
        grace_s=server.grace,
        body_max_bytes=server.body_max,
        redis=document.storage.redis,
        database=document.storage.database,
        upstreams={name: _upstream(name, upstream) for name, upstream in document.upstreams.items()},
        quota_status=document.refusals.quota_status,
        public_pricing=server.public_pricing,
        stripe=_stripe(document.stripe),
        stripe_off=document.stripe is not None and not document.stripe.secret_key,
        channels=_channels(document.alerts),
    )


def _stripe(stripe: schema.Stripe | None) -> Access | None:
    """None without the section, and while it is off: both its secrets are empty."""
    if stripe is None or not stripe.secret_key:
        return None
    return Access(
        secret_key=stripe.secret_key,
        publishable_key=stripe.publishable_key,
        webhook_secrets=tuple(secret for secret in stripe.webhook_secret.split(",") if secret),
        success_url=stripe.success_url,
        cancel_url=stripe.cancel_url,
        url=stripe.url,
    )


def _upstream(name: str, upstream: schema.Upstream) -> Upstream:
    return Upstream(
        name=name,
        dialect=upstream.dialect,
        url=upstream.url,
        keys=tuple(key for key in upstream.keys if key),
        output_field=upstream.output_field,
        insecure=upstream.insecure,
    )


def _catalog(document: schema.Document) -> Catalog:
    meters = meters_of(document)
    cards = {name: card_of(name, card, meters[card.meter]) for name, card in document.rates.items()}
    return Catalog(
        currency=document.currency,
        meters=meters,
        cards=cards,
        models=tuple(_model(model, cards) for model in document.models),
        features={name: _feature(name, feature, meters) for name, feature in document.features.items()},
        default_feature=document.default_feature,
        services={name: _service(name, service, meters) for name, service in document.services.items()},
        plans={name: _plan(name, plan, meters, document.currency) for name, plan in document.plans.items()},
        default_plan=document.default_plan,
        messages={reason: _message(message) for reason, message in document.messages.items()},
        warn_at_permille=tuple(sorted({int(share * 1000) for share in document.alerts.warn_at})),
        grace_ms=document.stripe.grace * 1000 if document.stripe is not None else 0,
        packages={name: _package(name, package, meters) for name, package in document.packages.items()},
        alerts=_alert_rules(document.alerts, meters),
    )


def _model(model: schema.Model, cards: Mapping[str, RateCard]) -> Model:
    return Model(
        match=model.match,
        ids=model.ids,
        upstreams=model.upstreams,
        rates=tuple(cards[name] for name in model.rates),
        output_max=model.output_max,
        output_default=model.output_default,
        rename=model.alias,
    )


def _feature(name: str, feature: schema.Feature, meters: Meters) -> Feature:
    return Feature(name, feature.wallet, _price(feature.price, meters[feature.wallet]))


def _service(name: str, service: schema.Service, meters: Meters) -> Service:
    meter = meters[service.wallet]
    return Service(
        name=name,
        wallet=service.wallet,
        per=service.per,
        price=Fraction(service.price) * meter.scale,
        minimum_balance=meter.parse(service.minimum_balance),
        increment_s=service.increment,
    )


def _price(price: schema.FeaturePrice, meter: Meter) -> Price:
    if price.per_use is not None:
        steps = tuple(BulkStep(step.start, meter.parse(step.per_use)) for step in price.bulk)
        return PerUse(meter.parse(price.per_use), steps)
    if price.per_1k_tokens is not None:
        return PerThousandTokens(meter.parse(price.per_1k_tokens), meter.parse(price.minimum or 0))
    return ByCard()


def _plan(name: str, plan: schema.Plan, meters: Meters, currency: str) -> Plan:
    allowance: dict[str, Amount] = {
        wallet: meters[wallet].parse(amount) if isinstance(amount, Decimal) else amount
        for wallet, amount in plan.allowance.items()
    }
    promise: dict[str, Any] = {
        "price": plan.price,
        "period": plan.period,
        "renews": plan.renews,
        "allowance": allowance,
        "ends": plan.ends,
        "models": plan.models,
        "features": plan.features,
        "limits": _limits(plan.limits),
        "debt": plan.debt,
        "overage": {wallet: _overage(extra, meters[wallet], currency) for wallet, extra in plan.overage.items()},
        "rollover": {wallet: _rollover(rest, meters[wallet]) for wallet, rest in plan.rollover.items()},
        "prepay": None if plan.prepay is None else _prepay(plan.prepay),
        "time_zone": plan.time_zone,
        "grant_source": plan.grant_source,
        "entitlements": plan.entitlements,
    }
    decimals = {wallet: meters[wallet].decimals for wallet in allowance}
    return Plan(
        name=name,
        label=plan.label,
        clamp=plan.clamp,
        on_exhausted=plan.on_exhausted,
        on_disconnect=plan.on_disconnect,
        on_abandon=plan.on_abandon,
        shadow=plan.shadow,
        stripe_price=plan.stripe_price,
        version=content_version([name, promise, decimals]),
        **promise,
    )


def _overage(overage: schema.Overage, meter: Meter, currency: str) -> Overage:
    unit = Fraction(overage.price) * int(10 ** decimals_of(currency)) / overage.per
    return Overage(meter.parse(overage.cap), unit / meter.scale)


def _rollover(rollover: schema.Rollover, meter: Meter) -> Rollover:
    if isinstance(rollover.max, str):
        return Rollover(share=Decimal(rollover.max.removesuffix("%")) / 100)
    return Rollover(amount=meter.parse(rollover.max))


def _prepay(prepay: schema.Prepay) -> Prepay:
    return Prepay(prepay.periods, prepay.discount, prepay.stripe_price)


def _package(name: str, package: schema.Package, meters: Meters) -> Package:
    return Package(
        name=name,
        label=package.label,
        price=package.price,
        grants=tuple(
            PackageGrant(grant.wallet, meters[grant.wallet].parse(grant.amount), grant.source, grant.expires)
            for grant in package.grants
        ),
        plans=package.plans,
        stripe_price=package.stripe_price,
    )


def _limits(limits: schema.PlanLimits) -> dict[str, Limits]:
    scopes = {"account": limits.account, "team": limits.team, "user": limits.user, "key": limits.key}
    return {
        scope: Limits(
            requests_per_minute=limit.requests_per_minute,
            tokens_per_minute=limit.tokens_per_minute,
            concurrent=limit.concurrent,
            uses=None if limit.uses is None else UsesLimit(limit.uses.max, limit.uses.per),
        )
        for scope, limit in scopes.items()
        if limit is not None
    }


def _alert_rules(alerts: schema.Alerts, meters: Meters) -> AlertRules:
    rapid, spike = alerts.rapid_use, alerts.spike
    return AlertRules(
        low_balance={wallet: _low_mark(mark, meters[wallet]) for wallet, mark in alerts.low_balance.items()},
        rapid_use=None if rapid is None else RapidUse(rapid.uses, rapid.per),
        spike=None if spike is None else Spike(Fraction(spike.factor), spike.over),
        refused=alerts.refused,
    )


def _low_mark(mark: Decimal | str, meter: Meter) -> LowMark:
    if isinstance(mark, Decimal):
        return LowMark(amount=meter.parse(mark))
    return LowMark(permille=int(Decimal(mark.removesuffix("%")) * 10))


def _channels(alerts: schema.Alerts) -> Channels:
    """A channel without its address is off."""
    webhook, email = alerts.webhook, alerts.email
    return Channels(
        webhook=Webhook(webhook.url, webhook.secret) if webhook is not None and webhook.url else None,
        mail=Mail(email.smtp, email.sender) if email is not None and email.smtp else None,
    )


def _message(message: schema.Message) -> dict[str, str]:
    return {"text": message.text} if message.title is None else {"title": message.title, "text": message.text}
