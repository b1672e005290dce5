"""What an account has, what it used, and what moved its balance."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway.billing.accounts import MemberService
from gateway.billing.desk import Desk
from gateway.domain.accounts import Account, GrantState
from gateway.domain.turns import resets_at_ms
from gateway.errors import QuotaUnavailable
from gateway.store.common import Page
from gateway.store.ledger import ANY_TIME, AuditLine, Times, Transaction
from gateway.store.usage import Filter, Total, UsageRecord


@dataclass(frozen=True, slots=True)
class GrantBalance:
    """An open grant: ``posted`` is what charges took of it, ``held`` what open calls hold. In steps."""

    grant: GrantState
    posted: int
    held: int

    @property
    def available(self) -> int:
        return self.grant.amount - self.posted - self.held


@dataclass(frozen=True, slots=True)
class WalletBalance:
    """A wallet's open grants in sum. ``resets_at_ms``: when its next allowance comes, 0 = none does."""

    wallet: str
    grants: tuple[GrantBalance, ...]
    resets_at_ms: int = 0

    @property
    def granted(self) -> int:
        return sum(each.grant.amount for each in self.grants)

    @property
    def used(self) -> int:
        return sum(each.posted for each in self.grants)

    @property
    def held(self) -> int:
        return sum(each.held for each in self.grants)

    @property
    def available(self) -> int:
        return self.granted - self.used - self.held


@dataclass(frozen=True, slots=True)
class Balance:
    account: Account
    wallets: tuple[WalletBalance, ...]
    holds_open: int
    all_grants: tuple[GrantState, ...] = ()  # ended ones too, as SQL has them


@dataclass(frozen=True, slots=True)
class UsageReport:
    """What was charged: in sums per wallet and group, and the newest records."""

    account: Account
    by: tuple[str, ...]
    totals: tuple[Total, ...]
    records: Page[UsageRecord]


class ReportService:
    """Reads only; a period that has ended is turned first, as a call would."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def balance(self, account_ref: str) -> Balance:
        """What the account's next call would find. Raises AccountNotFound, QuotaUnavailable, StoreUnavailable."""
        desk = self._desk
        if desk.states is None:
            raise QuotaUnavailable
        account = await desk.account(account_ref)
        wallets = tuple(desk.catalog().meters)
        view = await desk.states.view(account.id, wallets)
        if view.rev != account.rev:  # turned just now
            account = await desk.account(account.id)
        all_grants = await desk.store.grants.list(account.id)
        known = {grant.number: grant for grant in all_grants}
        balances = []
        for wallet, grants in view.wallets:
            held = [
                GrantBalance(known[each.number], each.counted + each.pending, each.held)
                for each in grants
                if each.number in known and _is_open(each.starts_at_ms, each.expires_at_ms, view.server_ms)
            ]
            if held or wallet.wallet in wallets:
                resets_ms = resets_at_ms(desk.catalog(), account.subscription, wallet.wallet)
                balances.append(WalletBalance(wallet.wallet, tuple(held), resets_ms))
        return Balance(account, tuple(balances), view.holds_open, all_grants)

    async def usage(
        self,
        account_ref: str,
        which: Filter,
        *,
        by: tuple[str, ...] = (),
        cursor: str | None = None,
        limit: int = 100,
    ) -> UsageReport:
        """Both in one. Raises as ``records`` and ``totals``."""
        account = await self._desk.account(account_ref)
        totals = await self.totals(account.id, which, by=by)
        return UsageReport(account, by, totals, await self.records(account.id, which, cursor=cursor, limit=limit))

    async def records(
        self, account_ref: str, which: Filter, *, cursor: str | None = None, limit: int = 100
    ) -> Page[UsageRecord]:
        """The newest first. ``which`` may have the app's own names of user and team. Raises AccountNotFound, NotFound
        (user, team), BadRequest (cursor), StoreUnavailable."""
        account = await self._desk.account(account_ref)
        which = await self.with_ids(account, which)
        return await self._desk.store.usage.list(account.id, which, cursor=cursor, limit=limit)

    async def totals(self, account_ref: str, which: Filter, *, by: tuple[str, ...] = ()) -> tuple[Total, ...]:
        """Per wallet and group. Raises AccountNotFound, NotFound (user, team), BadRequest (group), StoreUnavailable."""
        account = await self._desk.account(account_ref)
        return await self._desk.store.usage.totals(account.id, await self.with_ids(account, which), by=by)

    async def with_ids(self, account: Account, which: Filter) -> Filter:
        """The filter with our ids for the app's own names. Raises NotFound (user, team), StoreUnavailable."""
        members = MemberService(self._desk)
        if which.user_id is not None:
            which = replace(which, user_id=(await members.user(account.id, which.user_id)).id)
        if which.team_id is not None:
            which = replace(which, team_id=(await members.team(account.id, which.team_id)).id)
        return which

    async def transactions(
        self,
        account_ref: str,
        *,
        wallet: str | None = None,
        times: Times = ANY_TIME,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page[Transaction]:
        """What moved the account's balances, newest first. Raises AccountNotFound, BadRequest, StoreUnavailable."""
        account = await self._desk.account(account_ref)
        ledger = self._desk.store.ledger
        return await ledger.transactions(account.id, wallet=wallet, times=times, cursor=cursor, limit=limit)

    async def audit_log(
        self, account_ref: str | None, *, times: Times = ANY_TIME, cursor: str | None = None, limit: int = 100
    ) -> Page[AuditLine]:
        """Who did what, newest first. Raises AccountNotFound, BadRequest, StoreUnavailable."""
        account_id = None if account_ref is None else (await self._desk.account(account_ref)).id
        ledger = self._desk.store.ledger
        return await ledger.audit_log(account_id=account_id, times=times, cursor=cursor, limit=limit)


def _is_open(starts_at_ms: int, expires_at_ms: int, now_ms: int) -> bool:
    return starts_at_ms <= now_ms and not 0 < expires_at_ms <= now_ms
