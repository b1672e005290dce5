"""Quota for work outside the proxy: used at once, or held for as long as its own client says.

Rules
1. The same admission, engine, charges and outbox as a metered call's; only who renews a lease is another: the client,
   by extending, never a worker.
2. Whoever repeats a request names its hold: then SQL decides the charge before the answer (``decide``), so that the
   repeat finds it. Else the charge goes the way of a call's, and the answer does not wait for SQL.
3. What ends in between, whatever the reason, frees what it took.

Not here: what things cost (``domain.services``), and who may ask (``billing``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from gateway.domain.accounts import Caller
from gateway.domain.charges import ChargeRow
from gateway.domain.plans import Catalog
from gateway.domain.usage import Exact, Usage
from gateway.errors import HoldBusy, QuotaUnavailable, Refusal, StoreUnavailable
from gateway.metrics import OTHER, Metrics
from gateway.quota import kept
from gateway.quota.admission import Admission, Bill, bill_of
from gateway.quota.counting import count_charge
from gateway.quota.refusals import Situation, refusal
from gateway.quota.service import ATTEMPTS_MAX, Ask, Quota
from gateway.quota.turn import nonce
from gateway.store.metering import HoldRow, MeteringHolds
from limits import model as engine_model
from limits.engine import Engine
from limits.errors import EngineUnavailable

ROUTE = "metering"
NO_CLAMP = 2**53  # an output floor that no bound is above: what is metered by API is never made smaller


class Metered:
    """Admits and ends what has no upstream."""

    def __init__(
        self, engine: Engine, quota: Quota, metrics: Metrics, holds: MeteringHolds, *, lease_ms: Callable[[], int]
    ) -> None:
        self._engine = engine
        self._quota = quota
        self._metrics = metrics
        self._holds = holds
        self.lease_ms = lease_ms  # of a hold whose client names none

    async def would(self, ask: Ask) -> Admission:
        """What ``use`` would do; nothing is taken. Raises as ``Quota.admit``."""
        return await self._quota.admit(replace(ask, dry=True))

    async def use(self, ask: Ask, usage: Usage) -> tuple[Admission, Bill]:
        """Take and charge in one go. With a ``hold_id`` of the caller's the charge is in SQL when this answers.

        Raises as ``Quota.admit``; StoreUnavailable: perhaps charged, repeat it with the same ``hold_id``."""
        admission = await self._admit(ask)
        now_ms = self._quota.clock.now_ms()
        bill = bill_of(admission, Exact(usage), status=200, end="complete", upstream=None, now_ms=now_ms)
        if ask.hold_id:
            await self._decide(admission, bill)
        else:
            await self._quota.end(admission, bill)
        self.count(bill.row, admission.catalog)
        return admission, bill

    async def _admit(self, ask: Ask) -> Admission:
        """As ``Quota.admit``, and whoever is refused is counted."""
        try:
            return await self._quota.admit(ask)
        except Refusal as error:
            account = ask.caller.account
            plan = account.subscription.plan if account is not None else OTHER
            scope = error.detail.scope if error.detail is not None and error.detail.scope else "account"
            self._metrics.denials.add((error.code, scope), 1)
            uses = (ask.work.feature.name, plan if plan in ask.catalog.plans else OTHER, "refused")
            self._metrics.feature_uses.add(uses, 1)
            raise

    async def _decide(self, admission: Admission, bill: Bill) -> None:
        self._quota.holds.remove(admission.hold)
        try:
            await self._quota.scribe.decide(bill.row)
        except StoreUnavailable:
            self._quota.discard(admission.hold.account, admission.hold.hold_id)
            raise

    async def forget(self, account_id: str, hold_id: str) -> None:
        """Free a hold that nobody was told of, whose request never finished. Raises QuotaUnavailable."""
        try:
            await self._engine.release_id(account_id, hold_id)
        except EngineUnavailable as error:
            raise QuotaUnavailable(retry_after_s=1) from error

    async def open(self, ask: Ask, terms: Mapping[str, Any]) -> tuple[Admission, HoldRow]:
        """Take a hold and keep it, with what it is for. Its work may begin: from now on its lapse charges.

        Raises as ``Quota.admit``; StoreUnavailable, QuotaUnavailable: nothing is held, or will not be for long."""
        admission = await self._admit(ask)
        self._quota.holds.remove(admission.hold)
        hold = replace(admission.hold, first_byte=True)
        row = HoldRow(
            id=hold.hold_id,
            account_id=hold.account,
            version=hold.version,
            note=hold.note,
            hold=kept.written(hold),
            terms=terms,
            abandon=sum(wallet.abandon for wallet in hold.demand.wallets),
            lease_ends_at_ms=self._quota.clock.now_ms() + hold.lease_ms,
            created_at_ms=hold.created_at_ms,
        )
        try:
            row = await self._holds.add(row)
            await self.renew(row)
        except StoreUnavailable:
            self._quota.discard(hold.account, hold.hold_id)
            raise
        except QuotaUnavailable:
            self._quota.discard(hold.account, hold.hold_id)
            await self._holds.remove(hold.hold_id)
            raise
        return admission, row

    async def renew(self, row: HoldRow) -> None:
        """Its lease runs from now, and it is in Redis whatever happened there. Raises QuotaUnavailable."""
        try:
            hold = kept.read(row)
            state = await self._engine.renew(self._engine.partition(row.account_id), [hold])
        except EngineUnavailable as error:
            raise QuotaUnavailable(retry_after_s=1) from error
        self._quota.clock.saw(state.server_ms)

    async def grow(self, row: HoldRow, by_meter: Mapping[str, int], caller: Caller, situation: Situation) -> HoldRow:
        """Take more, or nothing: the row as it is then, to be kept by the caller.

        Raises a Refusal, QuotaUnavailable, HoldBusy: Redis has another version of it, or none."""
        limits = {budget.number: budget.amount for budget in caller.budgets}
        abandons = situation.plan.on_abandon != "release"
        more, hold = kept.more(row, by_meter, limits, abandons=abandons), kept.read(row)
        try:
            for _ in range(ATTEMPTS_MAX):
                reply = await self._engine.extend(hold, more, ticket=nonce())
                match reply:
                    case engine_model.Reserved(hold=grown):
                        abandon = sum(wallet.abandon for wallet in grown.demand.wallets)
                        return replace(row, version=grown.version, hold=kept.written(grown), abandon=abandon)
                    case engine_model.Refused():
                        raise refusal(situation, reply)
                    case engine_model.Stale(ticket):
                        await self._quota.turner.load(row.account_id, ticket)
                    case engine_model.Warming():
                        raise QuotaUnavailable(retry_after_s=1)
                    case engine_model.Gone():
                        raise HoldBusy(retry_after_s=1)
        except EngineUnavailable as error:
            raise QuotaUnavailable(retry_after_s=1) from error
        raise QuotaUnavailable(retry_after_s=1)

    async def keep(self, row: HoldRow, *, version_before: int) -> bool:
        """Whether it was still at that version, and is now kept like this, its lease renewed. Raises StoreUnavailable,
        QuotaUnavailable: it is kept, but its lease is not renewed."""
        if not await self._holds.change(row, version_before=version_before):
            return False
        await self.renew(row)
        return True

    async def heal(self, row: HoldRow) -> HoldRow:
        """Redis has another version of this hold, or none: what SQL keeps is what was answered, so Redis is told that.

        Two versions ahead: one may have been taken by an extension that nobody was told of. Raises HoldBusy,
        QuotaUnavailable, StoreUnavailable."""
        healed = replace(row, version=row.version + 2)
        if not await self._holds.change(healed, version_before=row.version):
            raise HoldBusy(retry_after_s=1)
        await self.renew(healed)
        return healed

    async def end(self, charge: ChargeRow, catalog: Catalog) -> None:
        """SQL decides, now: the first end of a hold is its end. Raises StoreUnavailable: perhaps ended, repeat."""
        await self._quota.scribe.decide(charge)
        self.count(charge, catalog)

    async def give_back(self, row: HoldRow) -> None:
        """Free what it holds, windows too; its end is for ``end`` to say. Redis being away is no error."""
        with suppress(EngineUnavailable):
            await self._engine.release_id(row.account_id, row.id)

    def count(self, row: ChargeRow, catalog: Catalog) -> None:
        """What dashboards want to know of a charge."""
        count_charge(self._metrics, row, catalog.meters.get(row.wallet))
