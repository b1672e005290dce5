"""Work outside the proxy that is held while it runs: reserved, extended, settled or released, and looked at.

Rules
1. A hold keeps the price it was opened at: what the config says later is for later holds.
2. Extending takes more, gives more time, or both; it also brings back a hold whose lease had lapsed.
3. Settling takes the quantity it really was, also after the lease, also after Redis forgot it. The first end stands:
   the same end again is answered as then, another one is refused.
4. What became of a hold is read from the bill, of metered calls too.

Not here: HTTP, and what a quantity costs (``domain.services``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

from gateway.billing.desk import Desk
from gateway.billing.metering import Asker, Item, MeteringService, Once, Priced, measured
from gateway.billing.terms import Terms
from gateway.domain import services
from gateway.domain.accounts import Caller
from gateway.domain.plans import ByCard, Feature, Fixed
from gateway.domain.services import Measure
from gateway.domain.units import Meter
from gateway.domain.usage import Basis, Usage
from gateway.errors import BadRequest, HoldBusy, HoldEnded, NotFound, RequestError
from gateway.quota import kept
from gateway.quota.metered import Metered
from gateway.quota.refusals import Situation
from gateway.quota.service import plan_of
from gateway.store.metering import HoldRow
from gateway.store.usage import UsageRecord

ATTEMPTS: Final = 5  # others may extend the same hold between two of our steps
TTL_MAX_S: Final = 24 * 3600
CHARGE_MAX: Final = 2**47  # steps: what a slip of the pen settles must not outgrow what a wallet can count
SETTLED: Final = "settled"
RELEASED: Final = "released"


@dataclass(frozen=True, slots=True)
class Held:
    """A hold as it stands. Amounts in steps of ``meter``; ``basis``, ``usage``, ``ended_at_ms`` once it was charged."""

    id: str
    state: str  # open | settled | released | lapsed
    name: str | None  # None: a metered call that is still in flight
    wallet: str
    meter: Meter | None
    quantity: str | None  # None: a metered call
    held: int
    charged: int
    overrun: int
    remaining: int
    basis: Basis | None
    usage: Usage | None
    model: str | None
    user_id: str | None
    team_id: str | None
    metadata: Mapping[str, object]
    created_at_ms: int
    expires_at_ms: int  # 0 = it has no lease of its own, or none any more
    ended_at_ms: int
    ttl_s: int
    shadow: str | None
    warning: str | None = None


class MeteredHolds:
    """Holds of one account at a time: whoever asks sees none but its own."""

    def __init__(self, desk: Desk, metered: Metered, metering: MeteringService) -> None:
        self._desk = desk
        self._metered = metered
        self._metering = metering

    async def reserve(self, asker: Asker, item: Item, *, ttl_s: int | None = None, once: Once | None = None) -> Held:
        """Set aside what the item costs, at least its minimum balance being there.

        Raises a Refusal, RequestError (item, ttl), NotFound (team), PriceMissing, QuotaUnavailable, StoreUnavailable.
        """
        lease_ms = self._metered.lease_ms() if ttl_s is None else ttl_s * 1000
        priced = self._metering.priced(item)
        if once is not None and once.again:
            account_id = _account_id(asker)
            known = await self._desk.store.metering.get(account_id, once.id())
            if known is not None:
                await self._metered.renew(known)
                return await self.get(account_id, known.id)
            await self._metered.forget(account_id, once.id())
        steps = services.ceiling(priced.offer, priced.measure, priced.card)
        minimum = max(1, priced.offer.minimum)  # an empty wallet begins nothing, however little is known of it yet
        ask = await self._metering.ask(asker, priced, item, steps, minimum=minimum, lease_ms=lease_ms)
        terms = Terms(priced.offer, priced.measure, item.model)
        admission, row = await self._metered.open(
            replace(ask, hold_id="" if once is None else once.id()), terms.written()
        )
        return replace(self._open(row, admission.remaining), warning=admission.warning())

    async def extend(
        self, asker: Asker, hold_id: str, more: Item, *, ttl_s: int | None = None, once: Once | None = None
    ) -> Held:
        """Take the quantity, amount or usage of ``more`` on top, and let the lease run from now.

        Raises NotFound, HoldEnded, HoldBusy, a Refusal (nothing is taken then), RequestError, QuotaUnavailable,
        StoreUnavailable.
        """
        account_id, row = _account_id(asker), await self._row(asker, hold_id)
        for _ in range(ATTEMPTS):
            if await self._end_of(account_id, hold_id) is not None:
                raise HoldEnded
            terms = Terms.read(row.terms)
            if once is not None and once.seed in terms.keys:  # done, and nobody was told
                await self._metered.renew(row)
                return await self._still_open(row)
            lease_ms = row.hold["lease_ms"] if ttl_s is None else ttl_s * 1000
            extended = await self._extended(asker.caller, row, terms, more)
            if extended is None:
                row = await self._healed(asker, row)
                await self._still_open(row)
                continue
            grown, longer = extended
            kept_terms = longer if once is None else longer.done(once.seed)
            expires_ms = self._desk.now_ms() + lease_ms
            grown = replace(
                grown,
                hold={**grown.hold, "lease_ms": lease_ms},
                terms=kept_terms.written(),
                lease_ends_at_ms=expires_ms,
            )
            if await self._metered.keep(grown, version_before=row.version):
                return await self._still_open(grown)
            row = await self._row(asker, hold_id)
        raise HoldBusy(retry_after_s=1)

    async def settle(self, asker: Asker, hold_id: str, actual: Item) -> Held:
        """End it with what it really was; without a quantity, amount or usage with what was held for.

        Raises NotFound, HoldEnded, RequestError, StoreUnavailable."""
        row = await self._row(asker, hold_id)
        terms = Terms.read(row.terms)
        measure = terms.measure
        if not _is_silent(actual):
            measure = measured(terms.offer, self._meter(terms), actual, absent=measure.quantity)
        return await self._end(row, terms, measure, SETTLED)

    async def release(self, asker: Asker, hold_id: str) -> Held:
        """End it without a charge: the work was not done. Raises NotFound, HoldEnded, StoreUnavailable."""
        row = await self._row(asker, hold_id)
        return await self._end(row, Terms.read(row.terms), None, RELEASED)

    async def get(self, account_id: str, hold_id: str) -> Held:
        """A hold, or what a metered call came to. Raises NotFound, QuotaUnavailable, StoreUnavailable."""
        store = self._desk.store
        row = await store.metering.get(account_id, hold_id)
        records = await store.usage.of_hold(account_id, hold_id)
        known = [record for record in records if record.state != "reversed"]
        if not known and row is None:
            return await self._in_flight(account_id, hold_id)
        wallet = known[-1].wallet if known else str(row and Terms.read(row.terms).offer.wallet)
        remaining = await self._remaining(account_id, wallet)
        if known and not (row is not None and self._lives_again(row, known[-1])):
            return self._charged(known[-1], row, remaining)
        assert row is not None, "there is one of the two"
        return replace(self._open(row, remaining), charged=known[-1].charged if known else 0)

    async def _extended(self, caller: Caller, row: HoldRow, terms: Terms, more: Item) -> tuple[HoldRow, Terms] | None:
        """The row with what was taken on top; None when Redis has another version of the hold, or none."""
        if _is_silent(more):
            return row, terms
        longer = terms.plus(measured(terms.offer, self._meter(terms), more, absent=Fraction(0)))
        priced, before = self._priced(longer), self._priced(terms)
        steps = services.ceiling(priced.offer, priced.measure, priced.card)
        meters, wallet = kept.meters(row), terms.offer.wallet
        by_meter = {
            meter: max(0, amount - before.in_meters(meters, 0).get(meter, 0))
            for meter, amount in priced.in_meters(meters, 0).items()
        }
        by_meter[wallet] = max(0, steps - kept.held(kept.read(row)))
        if not any(by_meter.values()) or kept.note(row).shadow is not None:  # what shadow let pass holds nothing
            return row, longer
        account, catalog = caller.account, self._desk.catalog()
        assert account is not None, "whoever asks, asks for an account"
        feature = Feature(terms.offer.name, wallet, Fixed(steps))
        situation = Situation(catalog, plan_of(caller, catalog), account.subscription, feature)
        try:
            return await self._metered.grow(row, by_meter, caller, situation), longer
        except HoldBusy:
            return None

    async def _still_open(self, row: HoldRow) -> Held:
        """A hold that was just renewed. One that somebody ended meanwhile was brought back by that, and is freed
        again. Raises HoldEnded, and as ``get``."""
        held = await self.get(row.account_id, row.id)
        if held.state in (SETTLED, RELEASED):
            await self._metered.give_back(row)
            raise HoldEnded
        return held

    async def _healed(self, asker: Asker, row: HoldRow) -> HoldRow:
        """The row after Redis was told of it, or as somebody else has changed it meanwhile. Raises QuotaUnavailable,
        StoreUnavailable."""
        try:
            return await self._metered.heal(row)
        except HoldBusy:
            return await self._row(asker, row.id)

    async def _end(self, row: HoldRow, terms: Terms, measure: Measure | None, end: str) -> Held:
        """Let SQL decide, and answer what it decided. ``measure`` None: nothing was done."""
        priced = self._priced(terms if measure is None else replace(terms, measure=measure))
        if measure is None:
            charged, basis, usage = 0, Basis.PROVIDER, Usage()
        elif isinstance(priced.offer.tariff, ByCard) and priced.card is None:  # the config has lost the model's price
            charged, basis, usage = kept.held(kept.read(row)), Basis.HOLD, measure.usage
        else:
            charged, basis, usage = priced.cost, Basis.PROVIDER, measure.usage
            if charged > CHARGE_MAX:
                raise RequestError("quantity: what it would cost is out of range", param="quantity")
        charge = kept.settled(
            row,
            charged=charged,
            by_meter={} if measure is None else priced.in_meters(kept.meters(row), charged),
            usage=usage,
            basis=basis,
            end="complete" if end == SETTLED else end,
            now_ms=self._desk.now_ms(),
            quantity=None if measure is None else services.written(priced.offer, measure.quantity),
        )
        found = await self._end_of(row.account_id, row.id)
        if found is None:
            if end == RELEASED:
                await self._metered.give_back(row)
            await self._metered.end(charge, self._desk.catalog())
            found = await self._end_of(row.account_id, row.id)
        assert found is not None, "SQL has decided"
        if (found.charged, found.waived, found.end) != (charge.charged, charge.waived, charge.end):
            raise HoldEnded(f"This hold was {'released' if found.end == RELEASED else 'settled otherwise'} already.")
        return await self.get(row.account_id, row.id)

    async def _end_of(self, account_id: str, hold_id: str) -> UsageRecord | None:
        records = await self._desk.store.usage.of_hold(account_id, hold_id)
        return next((record for record in records if record.state == SETTLED), None)

    async def _row(self, asker: Asker, hold_id: str) -> HoldRow:
        row = await self._desk.store.metering.get(_account_id(asker), hold_id)
        if row is None:
            raise NotFound("There is no such hold.", param="id")
        return row

    def _meter(self, terms: Terms) -> Meter:
        """Raises BadRequest: the config has lost it."""
        meter = self._desk.catalog().meters.get(terms.offer.wallet)
        if meter is None:
            raise BadRequest("unknown_wallet", "The config has no such wallet any more.", param="wallet")
        return meter

    def _priced(self, terms: Terms) -> Priced:
        catalog = self._desk.catalog()
        model = None if terms.model is None else catalog.model(terms.model)
        card = services.card_of(catalog, terms.offer, terms.model)
        return Priced(terms.offer, terms.measure, self._meter(terms), card, model)

    async def _in_flight(self, account_id: str, hold_id: str) -> Held:
        """A metered call that has not ended: only Redis knows of it. Raises NotFound, QuotaUnavailable."""
        states = self._desk.states
        assert states is not None, "what is metered is metered in Redis"
        found = [hold for hold in await states.open_holds(account_id) if hold.hold_id == hold_id]
        if not found or not found[0].takes:
            raise NotFound("There is no such hold.", param="id")
        (hold,) = found
        numbers = {number for number, _ in hold.takes}
        grants = await self._desk.store.grants.list(account_id)
        wallet = next((grant.wallet for grant in grants if grant.number in numbers), "")
        return Held(
            id=hold_id,
            state="open",
            name=None,
            wallet=wallet,
            meter=self._desk.catalog().meters.get(wallet),
            quantity=None,
            held=sum(amount for _, amount in hold.takes),
            charged=0,
            overrun=0,
            remaining=await self._remaining(account_id, wallet),
            basis=None,
            usage=None,
            model=None,
            user_id=None,
            team_id=None,
            metadata={},
            created_at_ms=hold.created_at_ms,
            expires_at_ms=0,
            ended_at_ms=0,
            ttl_s=0,
            shadow=None,
        )

    def _lives_again(self, row: HoldRow, record: UsageRecord) -> bool:
        """Extended after it had lapsed: what was charged is for the time being."""
        return record.state == "lapsed" and row.lease_ends_at_ms > self._desk.now_ms()

    async def _remaining(self, account_id: str, wallet: str) -> int:
        assert self._desk.states is not None, "what is metered is metered in Redis"
        view = await self._desk.states.view(account_id, (wallet,))
        return view.wallets[0][0].available

    def _open(self, row: HoldRow, remaining: int) -> Held:
        """A hold that nothing was charged for yet."""
        terms, note = Terms.read(row.terms), kept.note(row)
        is_over = row.lease_ends_at_ms <= self._desk.now_ms()
        return Held(
            id=row.id,
            state="lapsed" if is_over else "open",
            name=terms.offer.name,
            wallet=terms.offer.wallet,
            meter=self._desk.catalog().meters.get(terms.offer.wallet),
            quantity=services.written(terms.offer, terms.measure.quantity),
            held=0 if is_over else kept.held(kept.read(row)),
            charged=0,
            overrun=0,
            remaining=remaining,
            basis=None,
            usage=None,
            model=terms.model,
            user_id=note.user_id,
            team_id=note.team_id,
            metadata=note.metadata,
            created_at_ms=row.created_at_ms,
            expires_at_ms=row.lease_ends_at_ms,
            ended_at_ms=0,
            ttl_s=row.hold["lease_ms"] // 1000,
            shadow=note.shadow,
        )

    def _charged(self, record: UsageRecord, row: HoldRow | None, remaining: int) -> Held:
        state = record.state if record.state != SETTLED or record.end != RELEASED else RELEASED
        quantity = None if row is None else record.metadata.get(kept.METERED)
        return Held(
            id=record.hold_id,
            state=state,
            name=record.feature,
            wallet=record.wallet,
            meter=self._desk.catalog().meters.get(record.wallet),
            quantity=None if quantity is None else str(quantity),
            held=record.held,
            charged=record.charged,
            overrun=record.overrun,
            remaining=remaining,
            basis=record.basis,
            usage=record.usage,
            model=record.model,
            user_id=record.user_id,
            team_id=record.team_id,
            metadata=record.metadata,
            created_at_ms=record.created_at_ms,
            expires_at_ms=0 if row is None or state != "lapsed" else row.lease_ends_at_ms,
            ended_at_ms=record.at_ms,
            ttl_s=0 if row is None else row.hold["lease_ms"] // 1000,
            shadow=record.shadow,
        )


def _account_id(asker: Asker) -> str:
    assert asker.caller.account is not None, "whoever asks, asks for an account"
    return asker.caller.account.id


def _is_silent(item: Item) -> bool:
    return item.quantity is None and item.amount is None and item.usage is None
