"""The shape of config.yaml, key by key, as the public contract lists it. Its JSON Schema is ``config.schema.json``.

Rules
1. No unknown keys; every section is frozen. A default stands here and nowhere else.
2. A section checks only itself; what one section says about another is checked in ``checks``.

Not here: lines and messages (``loading``), and what the keys become (``build``).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gateway.config.values import (
    Amount,
    AnyText,
    Clamp,
    Count,
    Currency,
    DatabaseUrl,
    Decimals,
    Duration,
    Entitlement,
    Expected,
    Factor,
    Flag,
    Listen,
    LowBalance,
    MailAddress,
    Name,
    OptionalUrl,
    Pattern,
    Percentage,
    PeriodValue,
    Price,
    Quantity,
    RedisUrl,
    Secret,
    Several,
    Share,
    Size,
    SmtpUrl,
    Text,
    Tokens,
    WebUrl,
    Workers,
    Zone,
)


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        validate_default=True,
    )


def written(text: str | tuple[str, ...]) -> Any:
    """A default as it would stand in the file; it is read like one."""
    return text


class Server(Section):
    listen: Listen = written("127.0.0.1:8080")
    """For customers: proxy, billing API, pages, webhooks, /healthz and /readyz (status only)."""
    admin: Listen = written("127.0.0.1:9090")
    """For operators: /metrics, /readyz, admin API and pages."""
    admin_token: Secret = ""
    """Bearer token of the admin API and pages; required when admin is not loopback."""
    admin_token_file: AnyText = ""
    workers: Workers = written("auto")
    """Worker processes; auto = one per core."""
    secret: Secret = ""
    """HMAC of keys and page sessions; empty: made once in the data folder. Required with postgresql://."""
    secret_file: AnyText = ""
    lease: Duration = written("60s")
    """How long a hold lives without a sign of life from its worker."""
    connect: Duration = written("5s")
    """How long connecting to an upstream may take."""
    first_byte: Duration = written("120s")
    """How long an upstream's first byte may take."""
    idle: Duration = written("60s")
    """How long an upstream's stream may pause."""
    drain: Duration = written("30s")
    """How long an answer is read on after its client left."""
    grace: Duration = written("30s")
    """How long open streams may take to finish when the server stops."""
    body_max: Size = written("32MB")
    """The largest request body."""
    public_pricing: Flag = False
    """Whether plans and packages are told without a key."""


class Storage(Section):
    redis: RedisUrl = "embedded"
    """embedded, redis://…, rediss://… or redis+cluster://HOST:PORT,HOST:PORT"""
    redis_file: AnyText = ""
    database: DatabaseUrl = "embedded"
    """embedded (= SQLite in the data folder), sqlite:///… or postgresql://…"""
    database_file: AnyText = ""


class Upstream(Section):
    dialect: Literal["anthropic", "openai"]
    url: WebUrl
    keys: tuple[Secret, ...] = ()
    """Provider keys, as "${NAME}"; an upstream whose keys are all empty is off."""
    keys_file: AnyText = ""
    """A file with one provider key per line."""
    output_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    """The field in which an output bound is injected on chat."""
    insecure: Flag = False
    """Allows http:// to another machine: a model server in the same network."""


class Meter(Section):
    decimals: Decimals
    """Digits after the point of its smallest step."""
    tokens_per_unit: Count | None = None
    name: Text | None = None
    """One of it, as a person reads it: credit."""


class Card(Section):
    meter: Name
    per: Count = written("1")
    """The prices are for this many tokens."""
    input: Quantity
    output: Quantity
    cache_read: Quantity | None = None
    """Absent: as input."""
    cache_write: Quantity | None = None
    """Absent: the dearest of input and the other cache writes."""
    cache_write_5m: Quantity | None = None
    cache_write_1h: Quantity | None = None
    """Absent, like cache_write_5m: as cache_write."""
    reasoning: Quantity | None = None
    """Absent: as output."""
    request: Quantity = written("0")
    """Per request, whatever its tokens."""


class Model(Section):
    match: Pattern
    """Model names of this rule: claude-*; the first rule that matches wins."""
    ids: tuple[Pattern, ...] = ()
    """What /v1/models lists."""
    upstreams: tuple[Name, ...] = Field(min_length=1)
    """In order of preference."""
    rates: tuple[Name, ...] = ()
    """Cards, at most one per meter."""
    output_max: Tokens
    """The most output tokens that the model produces."""
    output_default: Tokens
    """The bound of a call that names none."""
    alias: Pattern | None = Field(default=None, alias="as")
    """The model's name at the upstream."""


class Bulk(Section):
    start: Several = Field(alias="from")
    per_use: Quantity


class FeaturePrice(Section):
    """``rates`` (all None), a price per use, or a price by size."""

    per_use: Quantity | None = None
    bulk: tuple[Bulk, ...] = ()
    per_1k_tokens: Quantity | None = None
    minimum: Quantity | None = None


def _feature_price(value: Any) -> Any:
    if value == "rates":
        return FeaturePrice()
    if isinstance(value, dict):
        fixed, sized = "per_use" in value, "per_1k_tokens" in value
        if fixed + sized == 1 and not (fixed and "minimum" in value) and not (sized and "bulk" in value):
            return value
    raise Expected("rates, {per_use: N, bulk: […]} or {per_1k_tokens: N, minimum: N}")


class Feature(Section):
    wallet: Name
    price: Annotated[
        FeaturePrice,
        BeforeValidator(_feature_price, json_schema_input_type=Literal["rates"] | FeaturePrice),
    ]


class Service(Section):
    wallet: Name
    per: Literal["second", "minute", "hour", "message", "request", "unit"]
    price: Quantity
    minimum_balance: Quantity = written("0")
    increment: Duration | None = None


class Uses(Section):
    max: Count
    per: Duration


class ScopeLimits(Section):
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    """Model tokens."""
    concurrent: Count | None = None
    uses: Uses | None = None


class PlanLimits(Section):
    account: ScopeLimits | None = None
    team: ScopeLimits | None = None
    user: ScopeLimits | None = None
    key: ScopeLimits | None = None


class Prepay(Section):
    periods: Several
    discount: Percentage
    stripe_price: AnyText = ""


class Overage(Section):
    """Use beyond the allowance, reported and due at the period's end."""

    cap: Quantity
    """The most per period."""
    price: Quantity = written("0")
    """What ``per`` units of it cost, in ``currency``."""
    per: Count = written("1")


class Rollover(Section):
    """What a period leaves unused is there in the next one, and only there."""

    max: LowBalance = written("100%")
    """The most: an amount, or a share of the allowance."""


def _off(value: Any) -> Any:
    return {} if value is None or value is False else value


GrantSource = Literal["plan", "trial", "package", "bonus", "gift"]


class Plan(Section):
    label: Text
    price: Price
    period: PeriodValue
    """month, year, once (for ever), or a duration such as 30d."""
    renews: Literal["by_itself", "when_paid", "never"] = "by_itself"
    allowance: dict[Name, Amount]
    """What each period grants, per wallet."""
    ends: Name = "block"
    """What follows when the plan ends: block, or a plan."""
    models: tuple[Pattern, ...] | None = None
    """Absent: all."""
    features: tuple[Name, ...] | None = None
    """Absent: all; []: none."""
    limits: PlanLimits = PlanLimits()
    clamp: Clamp = None
    """The floor, in output tokens, to which a call's output bound is lowered to what can be paid; false: never."""
    hold: Literal["worst_case", "learned"] = "worst_case"
    on_exhausted: Literal["stop", "error"] = "stop"
    """How a stream ends that the quota ends."""
    on_disconnect: Literal["drain", "cut"] = "drain"
    """Whether the rest of an answer is read after its client left."""
    on_abandon: Literal["estimate", "release", "hold"] = "estimate"
    """What a call costs whose worker died."""
    outage: Literal["closed", "lease"] = "closed"
    debt: Literal["forgive", "carry"] = "forgive"
    overage: Annotated[dict[Name, Overage], BeforeValidator(_off)] = {}
    """Per wallet: how much may be used beyond the allowance, and what it costs."""
    rollover: Annotated[dict[Name, Rollover], BeforeValidator(_off)] = {}
    """Per wallet: how much of a period's unused rest the next one gets."""
    time_zone: Zone = "UTC"
    """Where calendar periods turn."""
    entitlements: dict[Name, Entitlement] = {}
    """What the plan carries besides; told by the API."""
    prepay: Prepay | None = None
    stripe_price: AnyText = ""
    grant_source: GrantSource = "plan"
    shadow: Flag = False
    """Decide and record, but refuse nothing: what would be refused passes, uncharged."""


class PackageGrant(Section):
    wallet: Name
    amount: Quantity
    source: GrantSource = "package"
    expires: Duration | None = None


class Package(Section):
    label: Text
    price: Quantity
    stripe_price: AnyText = ""
    grants: tuple[PackageGrant, ...] = Field(min_length=1)
    plans: tuple[Name, ...] | None = None
    """Who can buy it; absent: everybody."""


class Message(Section):
    text: Text
    title: Text | None = None


def _message(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


class Webhook(Section):
    url: OptionalUrl = ""
    """Where alerts are posted to; empty: nowhere."""
    secret: Secret = ""
    """Signs them (Standard Webhooks): whsec_ and base64, or any text; needed with url."""
    secret_file: AnyText = ""


class Email(Section):
    smtp: SmtpUrl = ""
    """smtp://USER:PASSWORD@HOST:587 (STARTTLS) or smtps://…; empty: no e-mails."""
    smtp_file: AnyText = ""
    sender: MailAddress = Field(alias="from")
    """Who writes to the accounts' addresses."""


class RapidUse(Section):
    uses: Count
    """More charged calls than these within ``per``, by one user or by the account, are told once a day."""
    per: Duration


class Spike(Section):
    factor: Factor
    """How many times its usual use an account must exceed."""
    over: Duration
    """The past that is usual; a seventh of it is what is compared."""


class Alerts(Section):
    warn_at: tuple[Share, ...] = written(("0.8", "0.9", "1"))
    """Shares of the allowance at which a call carries a warning, once per period each."""
    low_balance: dict[Name, LowBalance] = {}
    """Per wallet the amount, or the share of its open grants, below which it is low."""
    webhook: Webhook | None = None
    email: Email | None = None
    rapid_use: RapidUse | None = None
    spike: Spike | None = None
    refused: Flag = False
    """Tell of refused calls, once per reason and period."""


def _one_of(*texts: str) -> BeforeValidator:
    def parse(value: Any) -> int:
        if value not in texts:
            raise Expected(" or ".join(texts))
        return int(value)

    return BeforeValidator(parse)


class Refusals(Section):
    quota_status: Annotated[Literal[429, 402], _one_of("429", "402")] = written("429")
    """402 for clients that retry every 429."""


class Stripe(Section):
    secret_key: Secret = ""
    """sk_test_… or sk_live_…; with webhook_secret empty, too: payments are off."""
    secret_key_file: AnyText = ""
    publishable_key: AnyText = ""
    webhook_secret: Secret = ""
    """whsec_…; two separated by a comma while one replaces the other."""
    webhook_secret_file: AnyText = ""
    success_url: OptionalUrl = ""
    """Where Checkout sends a customer who paid."""
    cancel_url: OptionalUrl = ""
    """Where Checkout sends a customer who did not."""
    url: WebUrl = written("https://api.stripe.com")
    """Stripe's API."""
    grace: Duration = written("7d")
    """How long a plan stays usable while its payment is due."""


class Document(Section):
    """A whole config.yaml."""

    model_config = ConfigDict(title="Tollgate config.yaml")

    version: Annotated[Literal[1], _one_of("1")]
    server: Server = Server()
    storage: Storage = Storage()
    upstreams: dict[Name, Upstream]
    meters: dict[Name, Meter]
    rates: dict[Name, Card] = {}
    models: tuple[Model, ...]
    features: dict[Name, Feature]
    default_feature: Name
    """For a call without Tollgate-Feature."""
    services: dict[Name, Service] = {}
    plans: dict[Name, Plan]
    default_plan: Name
    """The plan of a new account."""
    currency: Currency = "usd"
    packages: dict[Name, Package] = {}
    messages: dict[Name, Annotated[Message, BeforeValidator(_message, json_schema_input_type=str | Message)]] = {}
    alerts: Alerts = Alerts()
    refusals: Refusals = Refusals()
    stripe: Stripe | None = None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of config.yaml, for editors."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Document.model_json_schema()}
    tidied: dict[str, Any] = _tidy(schema)
    return tidied


def _tidy(value: Any) -> Any:
    """Without the titles that only repeat a key, without null and empty defaults, and with numbers as numbers."""
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _tidy(item) for key, item in value.items() if key != "title" or not isinstance(item, str)}
    default = kept.get("default")
    if default is None or default == {} or default == "" or isinstance(default, dict):
        kept.pop("default", None)
    elif isinstance(default, str) and default.isdecimal():
        kept["default"] = int(default)
    elif isinstance(default, list):
        kept["default"] = [float(item) for item in default]
    return kept
