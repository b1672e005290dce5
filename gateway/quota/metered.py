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

from dataclasses import replace

from gateway.domain.charges import ChargeRow
from gateway.domain.plans import Catalog
from gateway.domain.usage import Exact, Usage
from gateway.errors import QuotaUnavailable, StoreUnavailable
from gateway.metrics import Metrics
from gateway.quota.admission import Admission, Bill, bill_of
from gateway.quota.service import Ask, Quota
from limits.engine import Engine
from limits.errors import EngineUnavailable

ROUTE = "metering"
NO_CLAMP = 2**53  # an output floor that no bound is above: what is metered by API is never made smaller


class Metered:
    """Admits and ends what has no upstream."""

    def __init__(self, engine: Engine, quota: Quota, metrics: Metrics) -> None:
        self._engine = engine
        self._quota = quota
        self._metrics = metrics

    async def would(self, ask: Ask) -> Admission:
        """What ``use`` would do; nothing is taken. Raises as ``Quota.admit``."""
        return await self._quota.admit(replace(ask, dry=True))

    async def use(self, ask: Ask, usage: Usage) -> tuple[Admission, Bill]:
        """Take and charge in one go. With a ``hold_id`` of the caller's the charge is in SQL when this answers.

        Raises as ``Quota.admit``; StoreUnavailable: perhaps charged, repeat it with the same ``hold_id``."""
        admission = await self._quota.admit(ask)
        now_ms = self._quota.clock.now_ms()
        bill = bill_of(admission, Exact(usage), status=200, end="complete", upstream=None, now_ms=now_ms)
        if ask.hold_id:
            await self._decide(admission, bill)
        else:
            await self._quota.end(admission, bill)
        self.count(bill.row, admission.catalog)
        return admission, bill

    async def _decide(self, admission: Admission, bill: Bill) -> None:
        hold = self._quota.holds.remove(admission.hold)
        try:
            await self._quota.scribe.decide(bill.row)
        except StoreUnavailable:
            self._quota.discard(hold.account, hold.hold_id)
            raise

    async def forget(self, account_id: str, hold_id: str) -> None:
        """Free a hold that nobody was told of, whose request never finished. Raises QuotaUnavailable."""
        try:
            await self._engine.release_id(account_id, hold_id)
        except EngineUnavailable as error:
            raise QuotaUnavailable(retry_after_s=1) from error

    def count(self, row: ChargeRow, catalog: Catalog) -> None:
        """What dashboards want to know of a charge."""
        metrics, meter, plan = self._metrics, catalog.meters.get(row.wallet), catalog.plans.get(row.plan)
        metrics.feature_uses.add((row.feature, row.plan, row.end), 1)
        if meter is not None and plan is not None:
            units = row.charged / meter.scale
            metrics.charged_units.add((row.wallet, row.plan, plan.grant_source, row.basis.value), units)
            if row.overrun:
                metrics.overrun_units.add((row.wallet,), row.overrun / meter.scale)
        if row.held:
            metrics.hold_ratio.observe((), row.charged / row.held)
