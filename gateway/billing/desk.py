"""What every service needs to do its work, and the three things that all of them do.

Rules
1. A service is one SQL transaction of the store's, which also writes the push and the audit line (who, what); then the
   push is delivered, when Redis is there to be told.
2. Whoever asks names an account by its id, its external id or its e-mail.
3. Amounts come in and go out as plain decimals of their meter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from gateway.domain.accounts import Account
from gateway.domain.alerts import Channels
from gateway.domain.plans import Catalog
from gateway.domain.stripe import Access
from gateway.domain.units import Meter, UnitError, parse_duration_s
from gateway.errors import AccountNotFound, QuotaUnavailable, RequestError
from gateway.metrics import Metrics
from gateway.quota.keys import KeyHasher
from gateway.quota.states import States
from gateway.store.store import Store

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_MAX = 9000


@dataclass(frozen=True, slots=True)
class Desk:
    """The stores, what is for sale, who acts, and the way to Redis when there is one."""

    store: Store
    catalog: Callable[[], Catalog]
    hasher: KeyHasher
    states: States | None
    now_ms: Callable[[], int]
    actor: str
    metrics: Metrics | None = None  # of the server that this runs in
    stripe: Callable[[], Access | None] = lambda: None  # absent: payments are not taken
    channels: Callable[[], Channels] = Channels  # where alerts go
    undelivered: Callable[[str], None] = lambda _: None  # told of accounts whose change Redis will learn later

    async def account(self, ref: str) -> Account:
        """Raises AccountNotFound; RequestError when an e-mail is not enough to tell which."""
        found = await self.store.accounts.by_ref(ref)
        if found is not None:
            return found
        by_email = await self.store.accounts.by_email(ref) if "@" in ref else ()
        if not by_email:
            raise AccountNotFound(f"There is no account {shown(ref)}.", param="account")
        if len(by_email) > 1:
            ids = ", ".join(account.id for account in by_email)
            message = f"Several accounts have the e-mail {shown(ref)}: {ids}. Name one by its id."
            raise RequestError(message, param="account")
        return by_email[0]

    async def deliver(self, account_id: str) -> None:
        """Tell Redis of the account's change, if it is there."""
        if self.states is None or not await self.states.deliver(account_id):
            self.undelivered(account_id)

    async def held(self, account_id: str) -> Mapping[int, int]:
        """What open holds have of each grant number, and charges that have not reached the database; nothing where
        Redis does not know the account."""
        try:
            views = {} if self.states is None else await self.states.loaded([account_id], tuple(self.catalog().meters))
        except QuotaUnavailable:
            return {}
        wallets = [wallet for view in views.values() for wallet in view.wallets]
        return {grant.number: grant.held + grant.pending for _, grants in wallets for grant in grants}

    def moved(self, before: Account, after: Account, cause: str) -> None:
        """Count a change of plan. What was there already counts nothing."""
        if self.metrics is not None and before.rev != after.rev:
            plans = before.subscription.plan, after.subscription.plan
            if plans[0] != plans[1] or cause in ("cancel", "resume", "renew", "past_due"):
                self.metrics.subscription_changes.add((*plans, cause), 1)

    def meter(self, wallet: str | None) -> Meter:
        """A wallet's meter; without a name the only one there is. Raises RequestError."""
        meters = self.catalog().meters
        names = ", ".join(meters)
        if wallet is None:
            if len(meters) > 1:
                raise RequestError(f"Name the wallet: {names}.", param="wallet")
            return next(iter(meters.values()))
        if wallet not in meters:
            raise RequestError(f"There is no wallet {shown(wallet)}; there is: {names}.", param="wallet")
        return meters[wallet]


def shown(text: str) -> str:
    """A caller's text as it may stand in a message: printable and short."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return printable if len(printable) <= 60 else printable[:57] + "..."


def amount(meter: Meter, text: str, *, param: str, signed: bool = False) -> int:
    """A plain decimal in steps of its meter. Raises RequestError."""
    try:
        return meter.parse(text, signed=signed)
    except UnitError as error:
        raise RequestError(f"{param}: {error}", param=param) from error


def duration_ms(text: str, *, param: str) -> int:
    """``0`` or a duration such as ``24h``. Raises RequestError."""
    try:
        return 0 if text == "0" else parse_duration_s(text) * 1000
    except UnitError as error:
        raise RequestError(f"{param}: {error}", param=param) from error


def instant_ms(text: str, *, param: str) -> int:
    """An instant in RFC 3339, or a date, which is its first instant in UTC. Raises RequestError for all else: a time
    without its zone could mean any."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is not None and moment.tzinfo is None and len(text) == len("2026-12-01"):
        moment = moment.replace(tzinfo=UTC)
    if moment is None or moment.tzinfo is None or moment.year >= _YEAR_MAX:
        raise RequestError(
            f"{param}: expected a time such as 2026-12-01T00:00:00Z or a date, found {shown(text)!r}", param=param
        )
    return (moment - _EPOCH) // timedelta(milliseconds=1)
