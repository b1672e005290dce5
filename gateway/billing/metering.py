"""Metering by API: services, features and plain amounts, used in one call.

Rules
1. One function decides, charges and answers (``use``); a dry run is the same question without taking anything.
2. A request that may be repeated brings its ``Once``: what it makes has its id from there. A repeat first looks for
   what was made, so that nothing is charged twice, wherever the first one died.
3. A list is done item by item, in order; one that is refused does not keep the next one from being done.

Not here: work that is held while it runs (``metered_holds``), and HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from uuid import UUID

from gateway.billing.desk import Desk, amount, shown
from gateway.domain import services
from gateway.domain.accounts import Caller
from gateway.domain.plans import ByCard, Catalog, Feature, Fixed, Model, PerUse
from gateway.domain.rates import RateCard
from gateway.domain.services import Debit, Measure, Offer
from gateway.domain.units import Meter, UnitError
from gateway.domain.usage import Basis, Usage
from gateway.errors import BadRequest, RequestError, TollgateError, UnknownFeature, UnknownModel
from gateway.quota.admission import Admission, Facts
from gateway.quota.callers import Callers
from gateway.quota.credentials import bound
from gateway.quota.kept import METERED
from gateway.quota.metered import NO_CLAMP, ROUTE, Metered
from gateway.quota.service import Ask
from gateway.quota.translate import Work
from gateway.store.usage import UsageRecord

LEASE_MS = 30_000  # of what is used at once: it ends in the same request


@dataclass(frozen=True, slots=True)
class Item:
    """What is to be metered, as it was asked for: exactly one of service, feature and wallet (with its amount)."""

    service: str | None = None
    feature: str | None = None
    wallet: str | None = None
    amount: str | None = None
    quantity: str | int | Decimal | None = None  # absent: 1
    model: str | None = None  # where its price is by card
    usage: Usage | None = None  # the model tokens it took, where its price is by size or by card
    metadata: Mapping[str, object] = field(default_factory=dict)
    job: str | None = None
    job_type: str | None = None


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, and the key to ask the database again with when that proved old."""

    key: str
    caller: Caller
    user: str | None = None  # as the app calls him
    team: str | None = None


@dataclass(frozen=True, slots=True)
class Once:
    """The request's part in an idempotent one: ids come from ``seed``; ``again``: somebody ran it before."""

    seed: str
    again: bool

    def id(self, index: int = 0) -> str:
        """The id of what the item of this index makes: a UUIDv7 of the seed's time."""
        if index == 0:
            return self.seed
        seed = UUID(self.seed).bytes
        mixed = bytearray(seed[:6] + hashlib.sha256(seed + index.to_bytes(4, "big")).digest()[:10])
        mixed[6], mixed[8] = 0x70 | mixed[6] & 0x0F, 0x80 | mixed[8] & 0x3F
        return str(UUID(bytes=bytes(mixed)))


@dataclass(frozen=True, slots=True)
class Priced:
    """An item, found in the config and measured."""

    offer: Offer
    measure: Measure
    meter: Meter
    card: RateCard | None
    model: Model | None

    @property
    def cost(self) -> int:
        return services.cost(self.offer, self.measure, self.card)

    @property
    def uses(self) -> int:
        """How many uses the limits count: those of a feature, one of everything else."""
        return max(1, int(self.measure.quantity)) if isinstance(self.offer.tariff, PerUse) else 1

    def in_meters(self, meters: Collection[str], steps: int) -> dict[str, int]:
        """What it costs in each of these: ``steps`` in its own, in others by the model's card, if it has one."""
        found = {}
        for meter in meters:
            card = self.model.card(meter) if self.model is not None else None
            found[meter] = steps if meter == self.offer.wallet else card.price(self.measure.usage) if card else 0
        return found

    def work(self, steps: int, *, minimum: int) -> Work:
        """As the quota knows it: its price is worked out already."""
        usage = self.measure.usage
        feature = Feature(self.offer.name, self.offer.wallet, Fixed(steps))
        return Work(feature, self.model, usage.input_total, usage.output, uses=self.uses, minimum=minimum)


@dataclass(frozen=True, slots=True)
class Used:
    """What became of an item. Amounts in steps of ``meter``."""

    id: str
    name: str  # of the service or feature
    quantity: str
    meter: Meter
    cost: int
    charged: int  # 0 in a dry run, and of a plan in shadow
    remaining: int
    used_ever: int  # of this wallet, this use included
    basis: Basis
    resets_at_ms: int
    warning: str | None
    shadow: str | None
    dry: bool


class MeteringService:
    """Uses that are metered by API."""

    def __init__(self, desk: Desk, metered: Metered, callers: Callers) -> None:
        self._desk = desk
        self._metered = metered
        self._callers = callers

    async def use(self, asker: Asker, item: Item, *, dry: bool = False, once: Once | None = None) -> Used:
        """Check and charge; with ``dry`` only check.

        Raises a Refusal, RequestError (item, user), NotFound (team), PriceMissing, QuotaUnavailable, StoreUnavailable.
        """
        priced = self.priced(item)
        ask = await self.ask(asker, priced, item, priced.cost, minimum=priced.offer.minimum, lease_ms=LEASE_MS)
        assert asker.caller.account is not None, "whoever asks, asks for an account"
        account_id = asker.caller.account.id
        if once is not None and once.again and not dry:
            done = await self._charged(account_id, once.id())
            if done is not None:
                return await self._found(priced, done)
            await self._metered.forget(account_id, once.id())
        ever = await self._used_ever(account_id, priced.offer.wallet)  # before the charge: behind it nothing may fail
        if dry:
            return self._told(priced, await self._metered.would(ask), ever, dry=True)
        hold_id = "" if once is None else once.id()
        admission, _ = await self._metered.use(replace(ask, hold_id=hold_id), priced.measure.usage)
        return self._told(priced, admission, ever, dry=False)

    async def use_all(
        self, uses: Sequence[tuple[Asker, Item, bool]], *, once: Once | None = None
    ) -> list[Used | TollgateError]:
        """Each (asker, item, whether dry) by itself, in order: what was used, or why not.

        Of an idempotent request an item that nobody could decide (5xx) is raised, so that its answer is not kept: the
        repeat finds what was done, and does the rest."""
        results: list[Used | TollgateError] = []
        for index, (asker, item, dry) in enumerate(uses):
            own = None if once is None else Once(once.id(index), once.again)
            try:
                results.append(await self.use(asker, item, dry=dry, once=own))
            except TollgateError as error:
                if once is not None and error.status >= 500:
                    raise
                results.append(error)
        return results

    def priced(self, item: Item) -> Priced:
        """Raises RequestError (what is asked for, its quantity), UnknownFeature, UnknownModel."""
        catalog = self._desk.catalog()
        offer = _offer(catalog, item)
        meter = catalog.meters[offer.wallet]
        model = None if item.model is None else catalog.model(item.model)
        if item.model is not None and model is None:
            raise UnknownModel(param="model")
        if model is None and isinstance(offer.tariff, ByCard):
            raise BadRequest("missing_field", "model is missing: this feature is priced by model.", param="model")
        card = services.card_of(catalog, offer, item.model)
        return Priced(offer, measured(offer, meter, item), meter, card, model)

    async def ask(self, asker: Asker, priced: Priced, item: Item, steps: int, *, minimum: int, lease_ms: int) -> Ask:
        """The question to the quota. Raises NotFound (team), BadRequest (too_many_users), StoreUnavailable."""
        return Ask(
            caller=await bound(self._callers, asker.caller, user=asker.user, team=asker.team),
            catalog=self._desk.catalog(),
            work=priced.work(steps, minimum=minimum),
            model=item.model,
            facts=Facts(ROUTE, item.model, item.job, item.job_type, _metadata(priced, item)),
            choices=1,
            output_floor=NO_CLAMP,
            lease_ms=lease_ms,
            refresh=lambda stale: self._again(asker, stale),
        )

    async def _again(self, asker: Asker, stale: Caller) -> Caller:
        assert stale.account is not None, "whoever asks, asks for an account"
        caller = await self._callers.again(asker.key, stale=stale, account_ref=stale.account.id)
        return await bound(self._callers, caller, user=asker.user, team=asker.team)

    async def _charged(self, account_id: str, hold_id: str) -> UsageRecord | None:
        records = await self._desk.store.usage.of_hold(account_id, hold_id)
        return next((record for record in records if record.state == "settled"), None)

    def _told(self, priced: Priced, admission: Admission, ever: int, *, dry: bool) -> Used:
        """What an admitted use comes to. ``ever``: what was used of the wallet before it."""
        cost = priced.cost
        charged = 0 if dry or admission.shadowed is not None else cost
        return Used(
            id=admission.hold.hold_id,
            name=priced.offer.name,
            quantity=services.written(priced.offer, priced.measure.quantity),
            meter=priced.meter,
            cost=cost,
            charged=charged,
            remaining=admission.remaining + admission.held - charged,
            used_ever=ever + charged,
            basis=Basis.PROVIDER,
            resets_at_ms=admission.resets_at_ms,
            warning=admission.warning(charged),
            shadow=None if admission.shadowed is None else admission.shadowed.code,
            dry=dry,
        )

    async def _found(self, priced: Priced, record: UsageRecord) -> Used:
        """What a use came to whose answer nobody got."""
        return Used(
            id=record.hold_id,
            name=record.feature,
            quantity=services.written(priced.offer, priced.measure.quantity),
            meter=priced.meter,
            cost=record.charged + record.waived,
            charged=record.charged,
            remaining=record.balance_after,
            used_ever=await self._used_ever(record.account_id, record.wallet),
            basis=record.basis,
            resets_at_ms=0,
            warning=None,
            shadow=record.shadow,
            dry=False,
        )

    async def _used_ever(self, account_id: str, wallet: str) -> int:
        """All that was ever used of a wallet: what Redis counts on the grants it knows, SQL on those that are over."""
        assert self._desk.states is not None, "what is metered is metered in Redis"
        view, known = await asyncio.gather(
            self._desk.states.view(account_id, (wallet,)),
            self._desk.store.grants.used(account_id, wallet),
        )
        ((_, grants),) = view.wallets
        used = {**known, **{grant.number: grant.counted + grant.pending for grant in grants}}
        return sum(used.values())


def _metadata(priced: Priced, item: Item) -> Mapping[str, object]:
    """The caller's own words, and beside them how much it was, where that was said."""
    if item.quantity is None:
        return item.metadata
    return {**item.metadata, METERED: services.written(priced.offer, priced.measure.quantity)}


def _offer(catalog: Catalog, item: Item) -> Offer:
    """Raises RequestError, UnknownFeature."""
    given = [name for name in ("service", "feature", "wallet") if getattr(item, name) is not None]
    if len(given) != 1:
        raise RequestError(
            "Name one of service, feature, and wallet (with an amount).", param=given[1] if given else None
        )
    if (item.wallet is None) != (item.amount is None):
        raise RequestError("wallet and amount go together.", param="amount" if item.amount is None else "wallet")
    offer = services.offer_of(catalog, service=item.service, feature=item.feature, wallet=item.wallet)
    if offer is not None:
        return offer
    if item.feature is not None:
        raise UnknownFeature(f"There is no feature {shown(item.feature)}.", param="feature")
    if item.service is not None:
        raise BadRequest("unknown_service", f"There is no service {shown(item.service)}.", param="service")
    raise RequestError(
        f"There is no wallet {shown(item.wallet or '')}; there is: {', '.join(catalog.meters)}.", param="wallet"
    )


def measured(offer: Offer, meter: Meter, item: Item, *, absent: Fraction | None = None) -> Measure:
    """How much of an offer an item is; 1 of it, or ``absent``, where it does not say. Raises RequestError."""
    usage = item.usage or Usage()
    if isinstance(offer.tariff, Debit):
        if item.quantity is not None:
            raise RequestError("An amount has no quantity.", param="quantity")
        return Measure(Fraction(amount(meter, item.amount or "0", param="amount")), usage)
    if item.amount is not None:
        raise RequestError("Only a wallet takes an amount.", param="amount")
    if item.quantity is None and absent is not None:
        return Measure(absent, usage)
    try:
        quantity = services.quantity_of(offer, 1 if item.quantity is None else item.quantity)
    except UnitError as error:
        raise RequestError(f"quantity: {error}", param="quantity") from error
    return Measure(quantity, usage)
