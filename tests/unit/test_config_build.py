"""What a config becomes: exact amounts, cards without gaps, versions of what is promised, and the files we ship."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from gateway.config.export import exported
from gateway.config.loading import load
from gateway.config.model import SERVED_MAX, Address, Config
from gateway.domain.alerts import AlertRules, Channels, LowMark, Mail, RapidUse, Spike, Webhook
from gateway.domain.periods import Period
from gateway.domain.plans import (
    BulkStep,
    ByCard,
    Limits,
    Package,
    PackageGrant,
    PerThousandTokens,
    PerUse,
    Service,
    UsesLimit,
    is_trial,
)
from gateway.domain.usage import Usage
from tests.support.configs import config, edited

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "config.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]
PRO = "pro: {label: Pro, price: 30, period: 30d, allowance: {tokens: 500000}}"
CARD = "default: {meter: tokens, input: 1, output: 1}"


def pro(more: str) -> Config:
    return config(edited(PRO, PRO[:-1] + f", {more}}}"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_files_that_we_ship_load_without_any_environment(path: Path) -> None:
    loaded = load(path, {})
    first = path.read_text().partition("\n")[0].removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / first).samefile(ROOT / "config.schema.json")
    assert not any(upstream.on for upstream in loaded.settings.upstreams.values())


@pytest.mark.parametrize("name", ["config.yaml", "examples/token-budget.yaml"])
def test_the_files_that_we_ship_sell_the_token_budgets(name: str) -> None:
    """Billing system A: four tiers, a trial of seven days first."""
    catalog = load(ROOT / name, {}).catalog
    meter = catalog.meters["tokens"]
    sold: object = {
        plan.name: (plan.price, plan.period, meter.format(int(plan.allowance["tokens"])), plan.renews, plan.clamp)
        for plan in catalog.plans.values()
    }
    month = Period("fixed", 30 * 86_400)
    assert sold == {
        "trial": (0, Period("fixed", 7 * 86_400), "6000", "never", 256),
        "lite": (15, month, "200000", "by_itself", 256),
        "pro": (30, month, "500000", "by_itself", 256),
        "business": (200, month, "4000000", "by_itself", 256),
    }
    assert catalog.default_plan == "trial"
    assert is_trial(catalog, catalog.plans["trial"])
    assert catalog.plans["business"].limits == {"account": Limits(requests_per_minute=600, concurrent=100)}
    usage = Usage(input=10, cache_read=20, cache_write_1h=30, output=40)
    rule = catalog.model("claude-sonnet-4-5")
    assert rule is not None
    card = rule.card("tokens")
    assert card is not None
    assert card.price(usage) == 100 * meter.scale


def test_the_schema_for_editors_is_current() -> None:
    """Renew it with ``python -m gateway.config.export > config.schema.json``."""
    assert (ROOT / "config.schema.json").read_text() == exported()


def test_settings_have_the_contracts_defaults() -> None:
    settings = config(edited("server: {listen: 127.0.0.1:8080, admin: 127.0.0.1:9090}\n", "")).settings
    assert (settings.listen, settings.admin) == (Address("127.0.0.1", 8080), Address("127.0.0.1", 9090))
    assert (settings.workers, settings.admin_token, settings.secret) == (0, "", "")
    assert (settings.lease_s, settings.connect_s, settings.first_byte_s, settings.idle_s) == (60, 5, 120, 60)
    assert (settings.drain_s, settings.grace_s, settings.body_max_bytes) == (30, 30, 32 * 1024 * 1024)
    assert (settings.redis, settings.database, settings.quota_status) == ("embedded", "embedded", 429)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("127.0.0.1.example.com", False),
        ("127.evil", False),
        ("10.0.0.1", False),
    ],
)
def test_only_this_machine_is_loopback(host: str, loopback: bool) -> None:
    assert Address(host, 1).loopback is loopback


def test_an_upstream_without_a_key_is_off() -> None:
    assert not config(env={}).settings.upstreams["anthropic"].on
    text = edited('keys: ["${KEY:-}"]', 'keys: ["${KEY:-}", "${KEY2}"], output_field: max_tokens')
    upstream = config(text, {"KEY2": " sk-2\n"}).settings.upstreams["anthropic"]
    assert (upstream.on, upstream.keys, upstream.output_field) == (True, ("sk-2",), "max_tokens")
    assert upstream.url == "https://api.anthropic.com"


def test_a_model_is_served_by_the_upstreams_that_are_on_and_speak_its_dialect() -> None:
    loaded = config(env={"KEY": "sk-1"})
    for _ in range(2):  # found, then remembered
        listed, other = loaded.served("claude-a", "anthropic"), loaded.served("claude-b", "anthropic")
        assert listed is not None and other is not None
        assert (listed.label, other.label) == ("claude-a", "claude-*")
        assert [upstream.name for upstream in listed.upstreams] == ["anthropic"]
        foreign = loaded.served("claude-a", "openai")
        assert foreign is not None and foreign.upstreams == ()
        assert loaded.served("gpt-5", "openai") is None
    assert config(env={}).served("claude-a", "anthropic") is None, "none of its upstreams is on"


def test_what_is_remembered_of_models_is_bounded() -> None:
    loaded = config(env={"KEY": "sk-1"})
    for number in range(3 * SERVED_MAX):
        assert loaded.served(f"claude-{number}", "anthropic") is not None
    assert len(loaded._served) <= SERVED_MAX


def card(text: str, meter: str = "{decimals: 3}") -> dict[str, Fraction | None]:
    written = edited(CARD, f"default: {{meter: tokens, {text}}}", "{decimals: 3}", meter)
    found = config(written).catalog.cards["default"]
    kinds = ("input", "output", "cache_read", "cache_write", "cache_write_5m", "cache_write_1h", "reasoning", "request")
    return {kind: getattr(found, kind) for kind in kinds}


def test_a_card_is_in_steps_per_token_exactly() -> None:
    prices = card("per: 1000000, input: 3, output: 15, cache_read: 0.3, reasoning: 0.1, request: 0.5", "{decimals: 9}")
    assert prices["input"] == Fraction(3000)
    assert prices["output"] == Fraction(15_000)
    assert prices["cache_read"] == Fraction(300)
    assert prices["reasoning"] == Fraction(100)
    assert prices["request"] == Fraction(500_000_000)
    assert card("per: 7, input: 1, output: 1")["input"] == Fraction(1000, 7)


@pytest.mark.parametrize(
    ("written", "read", "write", "write_5m", "write_1h"),
    [
        ("input: 2, output: 9", 2, 2, 2, 2),
        ("input: 2, output: 9, cache_read: 0", 0, 2, 2, 2),  # a price of 0 is a price
        ("input: 2, output: 9, cache_write: 1", 2, 1, 1, 1),
        ("input: 2, output: 9, cache_write_5m: 3, cache_write_1h: 4", 2, 4, 3, 4),
        ("input: 2, output: 9, cache_write_1h: 4", 2, 4, 4, 4),
        ("input: 2, output: 9, cache_write: 5, cache_write_5m: 3", 2, 5, 3, 5),
    ],
)
def test_a_price_that_a_card_leaves_out_is_never_nothing(
    written: str, read: int, write: int, write_5m: int, write_1h: int
) -> None:
    prices = card(written, "{decimals: 0}")
    found = [prices[kind] for kind in ("cache_read", "cache_write", "cache_write_5m", "cache_write_1h")]
    assert found == [read, write, write_5m, write_1h]
    assert prices["reasoning"] is None
    assert prices["request"] == 0


def test_features_are_priced_in_their_wallets_steps() -> None:
    more = """general: {wallet: tokens, price: rates}
  leads: {wallet: tokens, price: {per_use: 5, bulk: [{from: 10, per_use: 4.5}, {from: 100, per_use: 4}]}}
  sized: {wallet: tokens, price: {per_1k_tokens: 0.5, minimum: 2}}
  small: {wallet: tokens, price: {per_1k_tokens: 0.5}}"""
    features = config(edited("general: {wallet: tokens, price: rates}", more)).catalog.features
    assert {name: feature.price for name, feature in features.items()} == {
        "general": ByCard(),
        "leads": PerUse(5000, (BulkStep(10, 4500), BulkStep(100, 4000))),
        "sized": PerThousandTokens(500, 2000),
        "small": PerThousandTokens(500, 0),
    }


def test_services_are_priced_exactly_also_below_a_step() -> None:
    more = """default_feature: general
services:
  call: {wallet: tokens, per: minute, price: 2.0, minimum_balance: 10, increment: 1s}
  sms: {wallet: tokens, per: message, price: 0.5}
  byte: {wallet: tokens, per: unit, price: 0.00001}"""
    services = config(edited("default_feature: general", more)).catalog.services
    assert services == {
        "call": Service("call", "tokens", "minute", Fraction(2000), 10_000, 1),
        "sms": Service("sms", "tokens", "message", Fraction(500)),
        "byte": Service("byte", "tokens", "unit", Fraction(1, 100)),
    }


def test_a_plan_reads_as_written() -> None:
    plan = pro(
        "renews: when_paid, ends: trial, clamp: false, models: ['claude-*'], features: [], time_zone: Europe/Berlin, "
        "on_exhausted: stop, on_disconnect: cut, on_abandon: hold, grant_source: gift, "
        "entitlements: {agents: 3, rate: 0.5, support: email, white_label: true, regions: [eu, 7]}, "
        "limits: {user: {tokens_per_minute: 9, uses: {max: 5, per: 60s}}}"
    ).catalog.plans["pro"]
    assert (plan.name, plan.label, plan.price, plan.renews, plan.ends) == (
        "pro",
        "Pro",
        Decimal(30),
        "when_paid",
        "trial",
    )
    assert (plan.clamp, plan.models, plan.features, plan.time_zone) == (None, ("claude-*",), (), "Europe/Berlin")
    assert (plan.on_exhausted, plan.on_disconnect, plan.on_abandon) == ("stop", "cut", "hold")
    assert plan.grant_source == "gift"
    assert plan.entitlements == {
        "agents": 3,
        "rate": "0.5",
        "support": "email",
        "white_label": True,
        "regions": ["eu", 7],
    }
    assert plan.limits == {"user": Limits(tokens_per_minute=9, uses=UsesLimit(5, 60))}
    absent = config().catalog.plans["pro"]
    assert (absent.clamp, absent.models, absent.features, absent.ends) == (None, None, None, "block")


def test_amounts_may_be_unlimited_or_custom() -> None:
    unlimited = config(edited("{tokens: 500000}", "{tokens: unlimited}")).catalog.plans["pro"]
    custom = config(edited("price: 30", "price: custom", "{tokens: 500000}", "{tokens: custom}")).catalog.plans["pro"]
    assert unlimited.allowance == {"tokens": "unlimited"}
    assert (custom.allowance, custom.price) == ({"tokens": "custom"}, "custom")


@pytest.mark.parametrize(
    ("pieces", "new_version"),
    [
        (("label: Pro", "label: Professional"), False),
        (("allowance: {tokens: 500000}}", "allowance: {tokens: 500000}, clamp: 9, on_disconnect: cut}"), False),
        (("allowance: {tokens: 500000}}", "allowance: {tokens: 500000.0}, models: null}"), False),
        (("tokens: 500000", "tokens: 500001"), True),
        (("price: 30", "price: 31"), True),
        (("period: 30d", "period: month"), True),
        (("decimals: 3", "decimals: 6"), True),
        (("allowance: {tokens: 500000}}", "allowance: {tokens: 500000}, features: []}"), True),
    ],
)
def test_a_plan_has_a_new_version_when_it_promises_something_else(pieces: tuple[str, str], new_version: bool) -> None:
    before, after = config().catalog.plans["pro"], config(edited(*pieces)).catalog.plans["pro"]
    assert (before.version != after.version) is new_version


@pytest.mark.parametrize(
    ("prices", "new_version"),
    [
        ("output: 1.0, input: 1", False),
        ("input: 1, output: 1, cache_read: 1", False),  # what it meant already
        ("per: 2, input: 2, output: 2", False),
        ("input: 1, output: 1.5", True),
        ("input: 1, output: 1, cache_read: 0.5", True),
        ("input: 1, output: 1, reasoning: 2", True),
        ("input: 1, output: 1, request: 1", True),
    ],
)
def test_a_card_has_a_new_version_when_it_prices_something_else(prices: str, new_version: bool) -> None:
    before = config().catalog.cards["default"]
    after = config(edited(CARD, f"default: {{meter: tokens, {prices}}}")).catalog.cards["default"]
    assert (before.version != after.version) is new_version


def test_thresholds_and_words_read_as_written() -> None:
    text = edited(
        "default_plan: trial",
        "default_plan: trial\nalerts: {warn_at: [90%, 0.8, 0.8, 100%, 0.125]}\n"
        'messages: {limit_exceeded: "no", trial_expired: {title: t, text: "{plan.days}"}}\n'
        "refusals: {quota_status: 402}",
    )
    loaded = config(text)
    assert loaded.catalog.warn_at_permille == (125, 800, 900, 1000)
    assert loaded.catalog.messages == {
        "limit_exceeded": {"text": "no"},
        "trial_expired": {"title": "t", "text": "{plan.days}"},
    }
    assert loaded.settings.quota_status == 402


def test_alerts_read_as_written() -> None:
    text = edited(
        "default_plan: trial",
        "default_plan: trial\nalerts:\n  low_balance: {tokens: 20%}\n  rapid_use: {uses: 5, per: 60s}\n"
        "  spike: {factor: 2.5, over: 7d}\n  refused: true\n"
        '  webhook: {url: "https://a.test/hook?x=1", secret: "${S:-0123456789abcdef}"}\n'
        '  email: {smtp: "smtp://u:${P:-p}@mail.test:25", from: billing@a.test}',
    )
    loaded = config(text)
    assert loaded.catalog.alerts == AlertRules(
        low_balance={"tokens": LowMark(permille=200)},
        rapid_use=RapidUse(5, 60),
        spike=Spike(Fraction(5, 2), 7 * 86_400),
        refused=True,
    )
    assert loaded.settings.channels == Channels(
        Webhook("https://a.test/hook?x=1", "0123456789abcdef"), Mail("smtp://u:p@mail.test:25", "billing@a.test")
    )
    amount = config(edited("default_plan: trial", "default_plan: trial\nalerts: {low_balance: {tokens: 1.5}}"))
    assert amount.catalog.alerts.low_balance == {"tokens": LowMark(amount=1500)}
    assert amount.settings.channels == Channels()


def test_a_meter_reads_as_written() -> None:
    meters = config(edited("tokens: {decimals: 3}", "tokens: {decimals: 6, tokens_per_unit: 2000, name: credit}"))
    meter = meters.catalog.meters["tokens"]
    assert (meter.decimals, meter.tokens_per_unit, meter.unit) == (6, 2000, "credits")


def test_the_version_of_a_config_follows_its_content() -> None:
    assert config().version == config().version
    assert config().version != config(edited("price: 30", "price: 31")).version


def test_a_package_is_what_it_grants() -> None:
    text = (
        "packages:\n"
        "  growth:\n"
        "    label: Growth\n"
        "    price: 18.50\n"
        "    stripe_price: price_g\n"
        "    plans: [pro]\n"
        "    grants: [{wallet: tokens, amount: 2000}, {wallet: tokens, amount: 200.5, source: bonus, expires: 365d}]\n"
    )
    loaded = config(edited("default_plan: trial\n", "default_plan: trial\n" + text))
    assert loaded.catalog.packages == {
        "growth": Package(
            name="growth",
            label="Growth",
            price=Decimal("18.50"),
            grants=(
                PackageGrant("tokens", 2_000_000, "package", None),
                PackageGrant("tokens", 200_500, "bonus", 365 * 86_400),
            ),
            plans=("pro",),
            stripe_price="price_g",
        )
    }


STRIPE = 'stripe: {secret_key: "${S:-}", webhook_secret: "${W:-}", success_url: "https://a.b/?paid=1"}\n'


@pytest.mark.parametrize(
    ("text", "env", "on", "off"),
    [
        ("", {}, False, False),
        (STRIPE, {}, False, True),
        (STRIPE, {"S": "sk_test_1", "W": "whsec_1"}, True, False),
    ],
)
def test_stripe_is_off_while_both_its_secrets_are_empty(text: str, env: dict[str, str], on: bool, off: bool) -> None:
    settings = config(edited("default_plan: trial\n", "default_plan: trial\n" + text), env).settings
    assert (settings.stripe is not None, settings.stripe_off) == (on, off)


def test_stripes_secrets_say_which_mode_and_may_be_two() -> None:
    env = {"S": "rk_live_1", "W": "whsec_old,whsec_new"}
    stripe = config(edited("default_plan: trial\n", "default_plan: trial\n" + STRIPE), env).settings.stripe
    assert stripe is not None and stripe.livemode
    assert stripe.webhook_secrets == ("whsec_old", "whsec_new")
    assert (stripe.success_url, stripe.cancel_url, stripe.url) == ("https://a.b/?paid=1", "", "https://api.stripe.com")


def test_a_loaded_config_shows_no_secret() -> None:
    """Whoever prints it, or a part of it, prints none of what was kept out of the file."""
    text = edited(
        "admin: 127.0.0.1:9090}",
        'admin: 127.0.0.1:9090, admin_token: "${TOKEN}", secret: "${SECRET}"}',
        "redis: embedded, database: embedded",
        'redis: "${REDIS}", database: "${DATABASE}"',
    )
    loaded = config(
        text,
        {
            "KEY": "canary-key",
            "TOKEN": "canary-token-of-thirty-two-letters",
            "SECRET": "canary-secret-of-thirty-two-letters",
            "REDIS": "redis://:canary@localhost/0",
            "DATABASE": "postgresql://tollgate:canary@localhost/tollgate",
        },
    )
    assert loaded.settings.upstreams["anthropic"].keys == ("canary-key",)
    assert "canary" not in repr(loaded)
