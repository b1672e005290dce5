"""Accounts, their teams and their users: made, found, suspended, named anew, brought in from a file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, TypeVar

from gateway.billing.desk import Desk, shown
from gateway.domain.accounts import Account, AccountStatus, GrantState
from gateway.domain.money import due_for
from gateway.domain.turns import Stay, decide
from gateway.errors import NotFound, RequestError
from gateway.store.bulk import NewAccount, create_accounts
from gateway.store.common import PAGE_MAX, Page
from gateway.store.database import Database
from gateway.store.members import Team, User

IMPORT_ROWS_MAX: Final = 20_000  # one transaction: others wait for it to write
IMPORT_TIMEOUT_S: Final = 60.0
Member = TypeVar("Member", Team, User)


@dataclass(frozen=True, slots=True)
class Holding:
    """A wallet's open grants in sum, as SQL knows them: ``used`` is without what has not been written yet.

    ``limit`` is without overage, ``used`` with it; ``overage`` is how much of it was used, ``due`` what that costs in
    the currency's smallest unit.
    """

    wallet: str
    limit: int
    used: int
    overage: int = 0
    due: int = 0


class AccountService:
    """Who is billed."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, new: NewAccount) -> Account:
        """Raises BadRequest (name, plan), Conflict (external id), StoreUnavailable."""
        desk = self._desk
        return await desk.store.accounts.create(
            new.name,
            now_ms=desk.now_ms(),
            plan=new.plan,
            email=new.email,
            external_id=new.external_id,
            actor=desk.actor,
        )

    async def bring_in(self, rows: Sequence[NewAccount]) -> tuple[Account, ...]:
        """All of them or none, in one transaction.

        Raises BadRow (the first bad one), RequestError for too many, StoreUnavailable.
        """
        if len(rows) > IMPORT_ROWS_MAX:
            raise RequestError(f"An import has at most {IMPORT_ROWS_MAX} rows, this one {len(rows)}: split it.")
        desk = self._desk
        database = desk.store.database
        patient = Database(database.engine, database.dialect, timeout_s=IMPORT_TIMEOUT_S)
        return await create_accounts(patient, desk.catalog(), rows, now_ms=desk.now_ms(), actor=desk.actor)

    async def list(
        self,
        *,
        after: str | None = None,
        limit: int = 100,
        plan: str | None = None,
        status: AccountStatus | None = None,
        search: str | None = None,
    ) -> Page[Account]:
        """In the order of their creation; ``search``: a part of a name, e-mail or id. Raises StoreUnavailable."""
        return await self._desk.store.accounts.list(after=after, limit=limit, plan=plan, status=status, search=search)

    async def get(self, ref: str) -> Account:
        """Raises AccountNotFound, RequestError (an e-mail of several), StoreUnavailable."""
        return await self._desk.account(ref)

    async def holdings(self, account: Account) -> tuple[Account, tuple[Holding, ...]]:
        """The account at this instant, turned where its period has ended, and what it was granted and has used.

        Raises StoreUnavailable.
        """
        desk = self._desk
        now_ms = desk.now_ms()
        if not isinstance(decide(desk.catalog(), account.subscription, now_ms), Stay):
            await desk.store.subscriptions.turn(account.id, now_ms=now_ms)
            account = await desk.account(account.id)
        sums: dict[str, Holding] = {}
        for grant in await desk.store.grants.list(account.id, open_at_ms=now_ms):
            sums[grant.wallet] = _with(sums.get(grant.wallet) or Holding(grant.wallet, 0, 0), grant)
        return account, tuple(sums[wallet] for wallet in sorted(sums))

    async def set_status(self, ref: str, status: AccountStatus, *, reason: str = "") -> Account:
        """Suspend an account, or let it call again; twice is as once. Raises as ``get``."""
        desk = self._desk
        account = await desk.account(ref)
        if account.status is status:
            return account
        changed = await desk.store.accounts.set_status(
            account.id, status, now_ms=desk.now_ms(), reason=reason, actor=desk.actor
        )
        await desk.deliver(account.id)
        return changed

    async def rename(
        self, ref: str, *, name: str | None = None, email: str | None = None, external_id: str | None = None
    ) -> Account:
        """Change what it is called; None keeps, an empty text takes away. Raises as ``get``; BadRequest, Conflict."""
        desk = self._desk
        account = await desk.account(ref)
        changed = await desk.store.accounts.rename(
            account.id,
            name=account.name if name is None else name,
            email=account.email if email is None else email,
            external_id=account.external_id if external_id is None else external_id,
            now_ms=desk.now_ms(),
            actor=desk.actor,
        )
        await desk.deliver(account.id)
        return changed


def _with(sum_: Holding, grant: GrantState) -> Holding:
    used = sum_.used + grant.used
    if grant.source != "overage":
        return replace(sum_, limit=sum_.limit + grant.amount, used=used)
    due = due_for(Fraction(grant.unit_price or 0), grant.used)
    return replace(sum_, used=used, overage=sum_.overage + grant.used, due=sum_.due + due)


class MemberService:
    """Teams and users inside an account."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create_team(self, account_ref: str, name: str, *, external_id: str | None = None) -> Team:
        """Raises AccountNotFound, BadRequest (name), Conflict (external id), StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        return await desk.store.members.create_team(
            account.id, name, now_ms=desk.now_ms(), external_id=external_id, actor=desk.actor
        )

    async def create_user(
        self,
        account_ref: str,
        name: str,
        *,
        external_id: str | None = None,
        email: str | None = None,
        team_ref: str | None = None,
    ) -> User:
        """Raises AccountNotFound, NotFound (team), BadRequest (name), Conflict (external id), StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        team = None if team_ref is None else await self.team(account.id, team_ref)
        return await desk.store.members.create_user(
            account.id,
            name,
            now_ms=desk.now_ms(),
            external_id=external_id,
            email=email,
            team_id=None if team is None else team.id,
            actor=desk.actor,
        )

    async def teams_page(self, account_ref: str, *, after: str | None = None, limit: int = 100) -> Page[Team]:
        """In the order they were made. Raises AccountNotFound, StoreUnavailable."""
        account = await self._desk.account(account_ref)
        return await self._desk.store.members.list_teams(account.id, after=after, limit=limit)

    async def users_page(self, account_ref: str, *, after: str | None = None, limit: int = 100) -> Page[User]:
        """In the order they were made. Raises AccountNotFound, StoreUnavailable."""
        account = await self._desk.account(account_ref)
        return await self._desk.store.members.list_users(account.id, after=after, limit=limit)

    async def teams(self, account_ref: str) -> tuple[Team, ...]:
        account = await self._desk.account(account_ref)
        return tuple([team async for team in _all(account.id, self._desk.store.members.list_teams)])

    async def users(self, account_ref: str) -> tuple[User, ...]:
        account = await self._desk.account(account_ref)
        return tuple([user async for user in _all(account.id, self._desk.store.members.list_users)])

    async def team(self, account_id: str, ref: str) -> Team:
        """By our id or its external id. Raises NotFound."""
        found = await self._desk.store.members.team(account_id, ref)
        if found is None:
            raise _unknown("team", ref)
        return found

    async def user(self, account_id: str, ref: str) -> User:
        """By our id or its external id. Raises NotFound."""
        found = await self._desk.store.members.user(account_id, ref)
        if found is None:
            raise _unknown("user", ref)
        return found


async def _all(account_id: str, list_page: Callable[..., Awaitable[Page[Member]]]) -> AsyncIterator[Member]:
    after: str | None = None
    while True:
        page = await list_page(account_id, after=after, limit=PAGE_MAX)
        for item in page.items:
            yield item
        after = page.next
        if after is None:
            return


def _unknown(what: str, ref: str) -> NotFound:
    return NotFound(f"There is no {what} {shown(ref)} in this account.", param=what)
