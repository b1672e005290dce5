"""Announces alerts and delivers them: in every worker, each alert by one of them.

Rules
1. Announcing is one log line, one count and the addressing of its deliveries, by whichever worker takes it.
2. A delivery is claimed for longer than sending can take; whoever dies with it leaves it to the next, and the receiver
   may then see the same id twice.
3. What failed is repeated after a growing, jittered pause for a day; then it is given up, which is an error in the log.
4. Nothing here is in a call's way, and a database that is away only makes it wait.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from gateway.billing.alerts import smtp
from gateway.billing.alerts.message import message_of
from gateway.billing.alerts.webhook import Undelivered, WebhookSender
from gateway.domain.alerts import EMAIL, WEBHOOK, Channels, words_of
from gateway.errors import StoreUnavailable
from gateway.metrics import Metrics
from gateway.store.alerts import Alert, Alerts, Claim

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
LEASE_MS: Final = 120_000
AT_ONCE: Final = 20


@dataclass(frozen=True, slots=True)
class Patience:
    """How long between attempts (doubling from the first to the longest, half of it by chance), and until when."""

    first_ms: int = 5_000
    longest_ms: int = 3_600_000
    give_up_ms: int = 86_400_000

    def again_at_ms(self, claim: Claim, now_ms: int) -> int | None:
        """None: given up."""
        pause_ms = min(self.longest_ms, self.first_ms * 2 ** min(claim.attempt - 1, 30))
        at_ms = now_ms + random.randint(pause_ms // 2, pause_ms)  # noqa: S311  # not a secret
        return at_ms if at_ms <= claim.alert.created_at_ms + self.give_up_ms else None


class Courier:
    """One worker's share of the telling."""

    def __init__(
        self,
        store: Alerts,
        metrics: Metrics,
        channels: Callable[[], Channels],
        now_ms: Callable[[], int],
        *,
        patience: Patience | None = None,
        webhooks: WebhookSender | None = None,
        lease_ms: int = LEASE_MS,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._channels = channels
        self._now_ms = now_ms
        self._patience = patience or Patience()
        self._webhooks = webhooks or WebhookSender()
        self._lease_ms = lease_ms
        self._work = asyncio.Event()
        self._round = asyncio.Lock()

    def wake(self) -> None:
        """Something was raised in this process: there is no need to wait for the next look."""
        self._work.set()

    async def run(self) -> None:
        """Announce and deliver until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._work.wait()
            self._work.clear()
            try:
                if await self._store.has_work(now_ms=self._now_ms()):
                    await self.work()
            except StoreUnavailable:
                log.debug("the database is away: alerts wait")

    async def work(self) -> None:
        """Everything that is due now; one round at a time. Raises StoreUnavailable."""
        async with self._round:
            await self._work_off()

    async def _work_off(self) -> None:
        channels = self._channels()
        open_ = [name for name, is_there in ((WEBHOOK, channels.webhook), (EMAIL, channels.mail)) if is_there]
        while announced := await self._store.announce(open_, now_ms=self._now_ms()):
            for alert in announced:
                self._announce(alert)
        while claims := await self._store.claim(now_ms=self._now_ms(), lease_ms=self._lease_ms, limit=AT_ONCE):
            await asyncio.gather(*(self._deliver(claim, channels) for claim in claims))

    def _announce(self, alert: Alert) -> None:
        self._metrics.alerts.add((alert.kind,), 1)
        told = {"account": alert.account_id, "alert": alert.id, "kind": alert.kind, **_facts(alert)}
        log.warning("alert %s: %s", alert.kind, words_of(alert.kind, alert.detail).title, extra=told)

    async def _deliver(self, claim: Claim, channels: Channels) -> None:
        """One attempt, and what becomes of it. Raises StoreUnavailable: the claim then runs out by itself."""
        try:
            await self._send(claim, channels)
        except Undelivered as error:
            await self._failed(claim, error)
            return
        self._metrics.alert_deliveries.add((claim.channel, "sent"), 1)
        await self._store.sent(claim)

    async def _send(self, claim: Claim, channels: Channels) -> None:
        """Raises Undelivered."""
        message = message_of(claim)
        if claim.channel == WEBHOOK and channels.webhook is not None:
            await self._webhooks.send(channels.webhook, message, now_s=self._now_ms() // 1000)
        elif claim.channel == EMAIL and channels.mail is not None:
            await smtp.send(channels.mail, message)
        else:
            raise Undelivered("this channel is no longer configured", lasting=True)

    async def _failed(self, claim: Claim, error: Undelivered) -> None:
        again_at_ms = None if error.lasting else self._patience.again_at_ms(claim, self._now_ms())
        self._metrics.alert_deliveries.add((claim.channel, "failed" if again_at_ms is None else "retried"), 1)
        told = {"account": claim.alert.account_id, "alert": claim.alert.id, "channel": claim.channel}
        if again_at_ms is None:
            log.error("an alert was not delivered and is given up: %s", error.why, extra=told)
        else:
            log.info("an alert was not delivered and is tried again: %s", error.why, extra=told)
        await self._store.failed(claim, error.why, again_at_ms=again_at_ms)

    async def close(self) -> None:
        await self._webhooks.close()


def _facts(alert: Alert) -> dict[str, object]:
    """Of the detail what a log line can be searched by; messages are for people."""
    return {name: alert.detail[name] for name in ("wallet", "percent", "reason", "plan") if alert.detail.get(name)}
