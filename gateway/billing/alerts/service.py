"""Alerts for operators: what was told to whom, and how far it got."""

from __future__ import annotations

from gateway.billing.desk import Desk
from gateway.billing.views import View, exactly, when
from gateway.domain.alerts import KINDS, words_of
from gateway.errors import RequestError
from gateway.store.alerts import AlertRecord
from gateway.store.common import Page

STATES = ("pending", "sent", "failed")


class AlertService:
    """Reads only."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list(
        self,
        account_ref: str | None = None,
        *,
        kind: str | None = None,
        state: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page[AlertRecord]:
        """The newest first. Raises AccountNotFound, RequestError (kind, state, cursor), StoreUnavailable."""
        if kind is not None and kind not in KINDS:
            raise RequestError(f"There is no such kind; there is: {', '.join(KINDS)}.", param="kind")
        if state is not None and state not in STATES:
            raise RequestError(f"A delivery is one of {', '.join(STATES)}.", param="state")
        account_id = None if account_ref is None else (await self._desk.account(account_ref)).id
        return await self._desk.store.alerts.list(
            account_id=account_id, kind=kind, state=state, cursor=cursor, limit=limit
        )


def alert_view(record: AlertRecord) -> View:
    alert = record.alert
    words = words_of(alert.kind, alert.detail)
    return {
        "id": str(alert.id),
        "at": exactly(alert.created_at_ms),
        "account": alert.account_id,
        "kind": alert.kind,
        "title": words.title,
        "text": words.text,
        "detail": dict(alert.detail),
        "deliveries": [
            {
                "channel": each.channel,
                "state": each.state,
                "attempts": each.attempts,
                "next_at": when(each.next_at_ms) if each.state == "pending" else None,
                "last_error": each.last_error or None,
            }
            for each in record.deliveries
        ],
    }
