"""What one section of a config says about another: references, amounts in their meters, plans that follow plans.

Rules
1. Everything wrong is found at once: a section that did not validate is skipped, but its name still counts as known.
2. What a model call could meet at run time without a price is refused here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any, Final

from gateway.config import schema
from gateway.config.build import meters_of
from gateway.config.model import Address
from gateway.config.reading import Loc
from gateway.domain.alerts import SIGNING_KEY_BYTES_MIN, signing_key
from gateway.domain.messages import DEFAULTS
from gateway.domain.messages import problems as template_problems
from gateway.domain.money import minor_units
from gateway.domain.services import UNIT_S
from gateway.domain.units import ENDLESS_FROM, UnitError

Finding = tuple[Loc, str, str | None]  # where, what was expected, what was found (None: what stands there)

_OPTIONS_SHOWN: Final = 12
_STRIPE_KEY: Final = re.compile(r"(sk|rk)_(test|live)_[A-Za-z0-9_]+$", re.ASCII)


def expected_one_of(options: Iterable[str], found: str) -> str:
    """ "one of a, b (did you mean b?)"."""
    known = sorted(options)
    close = difflib.get_close_matches(found, known, n=1)
    shown = ", ".join(known[:_OPTIONS_SHOWN]) + (", …" if len(known) > _OPTIONS_SHOWN else "")
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"one of {shown or '(none)'}{hint}"


def check(document: schema.Document, declared: Mapping[str, Collection[str]], models: tuple[int, ...]) -> list[Finding]:
    """All findings. ``declared`` are the names per section as they stand in the file, ``models`` the positions in the
    file of the document's models."""
    checks = _Checks(document, declared, models)
    return [
        finding
        for part in (
            checks.server(),
            checks.upstreams(),
            checks.cards(),
            checks.models(),
            checks.features(),
            checks.services(),
            checks.plans(),
            checks.followers(),
            checks.prices(),
            checks.packages(),
            checks.money(),
            checks.stripe(),
            checks.messages(),
            checks.others(),
        )
        for finding in part
    ]


class _Checks:
    def __init__(
        self, document: schema.Document, declared: Mapping[str, Collection[str]], models: tuple[int, ...]
    ) -> None:
        self._document = document
        self._declared = declared
        self._models = tuple(zip(models, document.models, strict=True))
        self._meters = meters_of(document)

    def server(self) -> Iterator[Finding]:
        server, storage = self._document.server, self._document.storage
        if not server.admin.loopback and not server.admin_token:
            yield ("server", "admin_token"), "a token, because server.admin is not a loopback address", "nothing"
        if server.listen == server.admin and server.admin.port:
            yield ("server", "admin"), "another address than server.listen", None
        if storage.database.startswith("postgresql://") and not server.secret:
            yield (
                ("server", "secret"),
                "a secret, because several gateways may share a postgresql:// database",
                "nothing",
            )

    def upstreams(self) -> Iterator[Finding]:
        for name, upstream in self._document.upstreams.items():
            yield from self._encrypted(("upstreams", name, "url"), upstream.url, insecure=upstream.insecure)

    def _encrypted(self, loc: Loc, url: str, *, insecure: bool) -> Iterator[Finding]:
        host = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
        host = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        if url.startswith("http://") and not Address(host, 0).loopback and not insecure:
            more = ", or insecure: true for a model server in the same network" if loc[0] == "upstreams" else ""
            yield loc, f"https://{more}", None

    def cards(self) -> Iterator[Finding]:
        for name, card in self._document.rates.items():
            yield from self._known("meters", ("rates", name, "meter"), card.meter)

    def models(self) -> Iterator[Finding]:
        seen: dict[str, int] = {}
        for index, model in self._models:
            where: Loc = ("models", index)
            for position, upstream in enumerate(model.upstreams):
                yield from self._known("upstreams", (*where, "upstreams", position), upstream)
            yield from self._model_cards(where, model)
            if model.output_default > model.output_max:
                yield (*where, "output_default"), f"at most output_max ({model.output_max})", None
            if model.alias is not None and _is_glob(model.alias):
                yield (*where, "as"), "a model name without wildcards", None
            if model.match in seen:
                yield (*where, "match"), f"a pattern of its own (models.{seen[model.match]} has the same)", None
            seen.setdefault(model.match, index)
            for position, name in enumerate(model.ids):
                yield from self._model_id((*where, "ids", position), name, index)

    def _model_cards(self, where: Loc, model: schema.Model) -> Iterator[Finding]:
        meters: set[str] = set()
        for position, name in enumerate(model.rates):
            yield from self._known("rates", (*where, "rates", position), name)
            card = self._document.rates.get(name)
            if card is not None and card.meter in meters:
                yield (*where, "rates", position), f"at most one card in {card.meter}", None
            if card is not None:
                meters.add(card.meter)

    def _model_id(self, loc: Loc, name: str, index: int) -> Iterator[Finding]:
        if _is_glob(name):
            yield loc, "a model name without wildcards", None
            return
        first = next((at for at, model in self._models if fnmatchcase(name, model.match)), None)
        if first is None or first > index:
            yield loc, f"a name that models.{index}.match fits", None
        elif first < index:
            yield loc, f"a name that no earlier rule fits (models.{first} serves it)", None

    def features(self) -> Iterator[Finding]:
        for name, feature in self._document.features.items():
            where: Loc = ("features", name)
            yield from self._known("meters", (*where, "wallet"), feature.wallet)
            price = feature.price
            for key, amount in (
                ("per_use", price.per_use),
                ("per_1k_tokens", price.per_1k_tokens),
                ("minimum", price.minimum),
            ):
                yield from self._amount((*where, "price", key), feature.wallet, amount)
            previous = 1
            for position, step in enumerate(price.bulk):
                loc = (*where, "price", "bulk", position)
                yield from self._amount((*loc, "per_use"), feature.wallet, step.per_use)
                if step.start <= previous:
                    yield (*loc, "from"), f"more than {previous}: steps stand in ascending order", None
                previous = step.start
        yield from self._known("features", ("default_feature",), self._document.default_feature)

    def services(self) -> Iterator[Finding]:
        for name, service in self._document.services.items():
            where: Loc = ("services", name)
            yield from self._known("meters", (*where, "wallet"), service.wallet)
            yield from self._amount((*where, "minimum_balance"), service.wallet, service.minimum_balance)
            if service.increment is not None and service.per not in UNIT_S:
                yield (*where, "increment"), "no such key: only what is priced per second, minute or hour has one", None
            if name in self._declared.get("features", ()):
                yield where, "another name: a feature has this one", repr(name)

    def plans(self) -> Iterator[Finding]:
        served = [name for _, model in self._models for name in (model.match, *model.ids)]
        for name, plan in self._document.plans.items():
            where: Loc = ("plans", name)
            if name == "block":
                yield where, "another name: block is what ends says", "'block'"
            for wallet, amount in plan.allowance.items():
                yield from self._known("meters", (*where, "allowance", wallet), wallet, repr(wallet))
                yield from self._amount((*where, "allowance", wallet), wallet, amount, below=ENDLESS_FROM)
            for position, feature in enumerate(plan.features or ()):
                loc = (*where, "features", position)
                yield from self._known("features", loc, feature, extra=(*self._document.services,))
            for position, pattern in enumerate(plan.models or ()):
                if not any(_overlap(pattern, known) for known in served):
                    yield (*where, "models", position), f"a model: {expected_one_of(served, pattern)}", None
            yield from self._around_allowance(where, plan)
            if plan.period.kind == "once" and plan.renews == "when_paid":
                yield (*where, "renews"), "by_itself or never: period once has no next period to pay for", None
        yield from self._known("plans", ("default_plan",), self._document.default_plan)

    def _around_allowance(self, where: Loc, plan: schema.Plan) -> Iterator[Finding]:
        """Overage, rollover and prepay."""
        for wallet, extra in plan.overage.items():
            yield from self._known("meters", (*where, "overage", wallet), wallet, repr(wallet))
            yield from self._amount((*where, "overage", wallet, "cap"), wallet, extra.cap, below=ENDLESS_FROM)
        for wallet, rest in plan.rollover.items():
            loc: Loc = (*where, "rollover", wallet)
            if wallet not in plan.allowance:
                yield loc, f"a wallet of the allowance: {expected_one_of(plan.allowance, wallet)}", repr(wallet)
            yield from self._amount((*loc, "max"), wallet, rest.max)
        if plan.period.kind == "once":
            for key in ("overage", "rollover"):
                if getattr(plan, key):
                    yield (*where, key), f"none: period once never ends, so nothing of it is {key}", None
        if plan.prepay is not None and plan.renews != "when_paid":
            yield (*where, "prepay"), "renews: when_paid, because prepay pays several periods at once", None

    def followers(self) -> Iterator[Finding]:
        """Plans that an account comes to by itself: they must exist, need no payment and no terms, and come to rest."""
        plans = self._document.plans
        yield from self._by_itself(("default_plan",), self._document.default_plan)
        for name, plan in plans.items():
            if plan.ends == "block":
                continue
            loc = ("plans", name, "ends")
            yield from self._known("plans", loc, plan.ends, extra=("block",))
            yield from self._by_itself(loc, plan.ends)
            chain = [name]
            while (last := plans.get(chain[-1])) is not None and last.ends not in ("block", *chain):
                chain.append(last.ends)
            resting = len(chain) > 1 and any(plans[each].renews == "by_itself" for each in chain if each in plans)
            if last is not None and last.ends == name and not resting:
                yield loc, f"a plan that does not lead back here ({' → '.join([*chain, name])})", None

    def _by_itself(self, loc: Loc, name: str) -> Iterator[Finding]:
        plan = self._document.plans.get(name)
        if plan is None:
            return
        if plan.renews == "when_paid":
            yield loc, "a plan that needs no payment (renews: by_itself or never)", None
        if "custom" in (plan.price, *plan.allowance.values()):
            yield loc, "a plan without custom terms", None

    def prices(self) -> Iterator[Finding]:
        """Rule 2: what a plan reaches with a feature priced by card has a card for that feature's wallet."""
        missing: dict[tuple[int, str], tuple[str, str]] = {}
        for plan_name, plan in self._document.plans.items():
            for feature_name, feature in self._document.features.items():
                if not _by_card(feature) or (plan.features is not None and feature_name not in plan.features):
                    continue
                for index, model in self._models:
                    if _reaches(plan, model) and not self._has_card(model, feature.wallet):
                        missing.setdefault((index, feature.wallet), (plan_name, feature_name))
        for (index, wallet), (plan_name, feature_name) in missing.items():
            loc: Loc = ("models", index, "rates")
            expected = f"a card in {wallet} (plan {plan_name} reaches the model with feature {feature_name})"
            cards = self._document.models[[at for at, _ in self._models].index(index)].rates
            yield loc, expected, ", ".join(cards) or "none"

    def _has_card(self, model: schema.Model, meter: str) -> bool:
        cards = [self._document.rates.get(name) for name in model.rates]
        return any(card is None or card.meter == meter for card in cards)  # None: reported where it is wrong

    def packages(self) -> Iterator[Finding]:
        for name, package in self._document.packages.items():
            for position, grant in enumerate(package.grants):
                loc: Loc = ("packages", name, "grants", position)
                yield from self._known("meters", (*loc, "wallet"), grant.wallet)
                yield from self._amount((*loc, "amount"), grant.wallet, grant.amount, below=ENDLESS_FROM)
            for position, plan in enumerate(package.plans or ()):
                yield from self._known("plans", ("packages", name, "plans", position), plan)

    def money(self) -> Iterator[Finding]:
        """Prices that somebody can pay, and each of Stripe's for one thing."""
        currency = self._document.currency
        priced: list[tuple[Loc, Any, str]] = []
        for name, plan in self._document.plans.items():
            priced.append((("plans", name), plan.price, plan.stripe_price))
            if plan.prepay is not None:
                priced.append((("plans", name, "prepay"), None, plan.prepay.stripe_price))
        for name, package in self._document.packages.items():
            priced.append((("packages", name), package.price, package.stripe_price))
        seen: dict[str, Loc] = {}
        for where, price, stripe_price in priced:
            try:
                if isinstance(price, Decimal):
                    minor_units(price, currency)
            except UnitError as error:
                yield (*where, "price"), error.expected, None
            if stripe_price in seen:
                other = ".".join(str(step) for step in seen[stripe_price])
                yield (*where, "stripe_price"), f"a price of its own ({other} has the same)", None
            elif stripe_price:
                seen[stripe_price] = where
        for name, plan in self._document.plans.items():
            sold = plan.stripe_price or (plan.prepay is not None and plan.prepay.stripe_price)
            if sold and plan.renews != "when_paid":
                yield ("plans", name, "renews"), "when_paid, because its payments grant its periods", None

    def stripe(self) -> Iterator[Finding]:
        """Without its secrets the section is refused, unless both are named and left empty: then it is off."""
        stripe = self._document.stripe
        if stripe is None:
            return
        named = {"secret_key", "webhook_secret"} <= stripe.model_fields_set
        if named and not stripe.secret_key and not stripe.webhook_secret:
            return
        if not stripe.webhook_secret:
            yield ("stripe", "webhook_secret"), "a secret, because payments are only believed when signed", "nothing"
        if not stripe.secret_key:
            yield ("stripe", "secret_key"), "a secret key, because Checkout is opened with it", "nothing"
        elif _STRIPE_KEY.match(stripe.secret_key) is None:
            yield ("stripe", "secret_key"), "Stripe's secret key (sk_test_… or sk_live_…)", "something else"
        if not stripe.success_url:
            yield ("stripe", "success_url"), "a URL, because Checkout sends customers there", "nothing"
        yield from self._encrypted(("stripe", "url"), stripe.url, insecure=False)

    def messages(self) -> Iterator[Finding]:
        for reason, message in self._document.messages.items():
            if reason not in DEFAULTS:
                yield ("messages", reason), f"a reason: {expected_one_of(DEFAULTS, reason)}", repr(reason)
            for template in (message.text, message.title or ""):
                yield from ((("messages", reason), *problem) for problem in template_problems(template))

    def others(self) -> Iterator[Finding]:
        for meter, amount in self._document.alerts.low_balance.items():
            loc = ("alerts", "low_balance", meter)
            yield from self._known("meters", loc, meter, repr(meter))
            if isinstance(amount, Decimal):
                yield from self._amount(loc, meter, amount)
        webhook = self._document.alerts.webhook
        if webhook is not None and webhook.url and not _signs(webhook.secret):
            expected = "a secret of at least 16 characters (or whsec_ and base64), because alerts are signed"
            yield ("alerts", "webhook", "secret"), expected, "none" if not webhook.secret else "another"

    def _known(
        self, section: str, loc: Loc, name: str, found: str | None = None, extra: tuple[str, ...] = ()
    ) -> Iterator[Finding]:
        known = self._declared.get(section, ())
        if name not in known and name not in extra:
            yield loc, f"{section}: {expected_one_of([*known, *extra], name)}", found

    def _amount(self, loc: Loc, wallet: str, amount: Any, *, below: int | None = None) -> Iterator[Finding]:
        meter = self._meters.get(wallet)
        if meter is None or not isinstance(amount, Decimal):
            return
        try:
            steps = meter.parse(amount)
        except UnitError as error:
            yield loc, error.expected, None
            return
        if below is not None and steps >= below:
            yield loc, f"less than {meter.format(below)} {meter.unit}, or unlimited", None


def _signs(secret: str) -> bool:
    try:
        return len(signing_key(secret)) >= SIGNING_KEY_BYTES_MIN
    except ValueError:
        return False


def _by_card(feature: schema.Feature) -> bool:
    return feature.price.per_use is None and feature.price.per_1k_tokens is None


def _reaches(plan: schema.Plan, model: schema.Model) -> bool:
    if plan.models is None:
        return True
    return any(_overlap(pattern, name) for pattern in plan.models for name in (model.match, *model.ids))


def _overlap(pattern: str, name: str) -> bool:
    """Whether some model fits both: exact for names, and close enough for two patterns of one family."""
    return fnmatchcase(name, pattern) or fnmatchcase(pattern, name)


def _is_glob(name: str) -> bool:
    return any(char in name for char in "*?[")
