"""Teams, users and budgets inside an account."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.accounts import Budget
from gateway.domain.periods import Period, bounds, parse_period
from gateway.domain.units import AMOUNT_MAX
from gateway.errors import BadRequest, Conflict, NotFound
from gateway.store.common import Page, changed, lock_account, new_id, page_of, page_size, record, storable
from gateway.store.database import Database
from gateway.store.schema import accounts, budgets, keys, teams, users

USERS_SEEN_MAX: Final = 10_000  # created on first sight, per account: a caller's header must not fill the database
EXTERNAL_ID_MAX: Final = 200
_SCOPES: Final = {"team": teams, "user": users, "key": keys}


@dataclass(frozen=True, slots=True)
class Team:
    id: str
    account_id: str
    external_id: str | None
    name: str
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class User:
    id: str
    account_id: str
    team_id: str | None
    external_id: str | None
    email: str | None
    name: str
    created_at_ms: int


class Members:
    """Who is inside an account, and what they may use."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_team(
        self, account_id: str, name: str, *, now_ms: int, external_id: str | None = None, actor: str = "system"
    ) -> Team:
        """Raises AccountNotFound, BadRequest (name), Conflict (external id), StoreUnavailable."""
        team = Team(new_id(), account_id, _external(external_id), _name(name), now_ms)
        async with self._database.write() as connection:
            await lock_account(connection, account_id)
            await _free(connection, teams, account_id, team.external_id)
            await connection.execute(
                insert(teams).values(
                    id=team.id, account_id=account_id, external_id=team.external_id, name=name, created_at_ms=now_ms
                )
            )
            detail = {"team": team.id, "name": name}
            await record(connection, "create_team", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)
        return team

    async def create_user(
        self,
        account_id: str,
        name: str,
        *,
        now_ms: int,
        external_id: str | None = None,
        email: str | None = None,
        team_id: str | None = None,
        actor: str = "system",
    ) -> User:
        """Raises AccountNotFound, NotFound (team), BadRequest (name), Conflict (external id), StoreUnavailable."""
        user = User(new_id(), account_id, team_id, _external(external_id), email, _name(name), now_ms)
        async with self._database.write() as connection:
            await lock_account(connection, account_id)
            await _free(connection, users, account_id, user.external_id)
            if team_id is not None:
                await member(connection, "team", team_id, account_id)
            await _insert_user(connection, user)
            detail = {"user": user.id, "name": name}
            await record(connection, "create_user", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)
        return user

    async def user_for(self, account_id: str, external_id: str, *, now_ms: int) -> str | None:
        """The id of the user whom the app calls ``external_id`` (or we do), created on first sight; None when the
        account has seen too many already, or for a text that is no name. Raises AccountNotFound, StoreUnavailable."""
        known = await self._find(users, account_id, external_id)
        if known is not None:
            return str(known.id)
        if len(external_id) > EXTERNAL_ID_MAX or not external_id.isprintable():
            return None
        async with self._database.read() as connection:  # one account too full must not queue for the writers' lock
            query = select(accounts.c.users_seen).where(accounts.c.id == account_id)
            if ((await connection.execute(query)).scalar_one_or_none() or 0) >= USERS_SEEN_MAX:
                return None
        async with self._database.write() as connection:
            account = await lock_account(connection, account_id)
            mine = (users.c.account_id == account_id, users.c.external_id == external_id)
            found = (await connection.execute(select(users.c.id).where(*mine))).scalar_one_or_none()
            if found is not None:
                return str(found)
            if account.users_seen >= USERS_SEEN_MAX:
                return None
            user = User(new_id(), account_id, None, external_id, None, external_id, now_ms)
            await _insert_user(connection, user)
            seen = update(accounts).where(accounts.c.id == account_id).values(users_seen=account.users_seen + 1)
            await connection.execute(seen)
        return user.id

    async def team_for(self, account_id: str, ref: str) -> str | None:
        """The id of the account's team called ``ref`` by us or by the app. Raises StoreUnavailable."""
        found = await self._find(teams, account_id, ref)
        return None if found is None else str(found.id)

    async def team(self, account_id: str, ref: str) -> Team | None:
        """By our id, else by the app's. Raises StoreUnavailable."""
        found = await self._find(teams, account_id, ref)
        return None if found is None else _team_of(found)

    async def user(self, account_id: str, ref: str) -> User | None:
        """By our id, else by the app's. Raises StoreUnavailable."""
        found = await self._find(users, account_id, ref)
        return None if found is None else _user_of(found)

    async def list_teams(self, account_id: str, *, after: str | None = None, limit: int = 100) -> Page[Team]:
        return await self._list(teams, account_id, after, limit, _team_of)

    async def list_users(self, account_id: str, *, after: str | None = None, limit: int = 100) -> Page[User]:
        return await self._list(users, account_id, after, limit, _user_of)

    async def set_budget(
        self,
        scope: str,
        scope_id: str,
        *,
        meter: str,
        amount: int,
        period: Period,
        now_ms: int,
        anchor_ms: int | None = None,
        time_zone: str = "UTC",
        actor: str = "system",
    ) -> tuple[str, Budget]:
        """The ceiling of a team, user or key in a meter. It replaces the one that was there, whose use of the running
        period stays if the period is the same. Answers the account and the budget.

        Raises NotFound (scope), BadRequest (scope kind, amount), StoreUnavailable.
        """
        if scope not in _SCOPES:
            raise BadRequest("invalid_scope", "A budget is of a team, a user or a key.", param="scope")
        if not 0 <= amount <= AMOUNT_MAX:
            raise BadRequest("invalid_amount", "The amount must be below 2^53 steps.", param="amount")
        account_id = await self._account_of(scope, scope_id)
        async with self._database.write() as connection:
            account = await lock_account(connection, account_id)
            old = (await connection.execute(_live_budgets(account_id, scope, scope_id, meter))).one_or_none()
            if old is not None and old.period == str(period) and old.time_zone == time_zone:
                number, anchor = old.number, old.anchor_at_ms if anchor_ms is None else anchor_ms
                change = update(budgets).where(budgets.c.account_id == account_id, budgets.c.number == number)
                await connection.execute(change.values(amount=amount, anchor_at_ms=anchor))
            else:
                if old is not None:
                    await _remove(connection, account_id, old.number, now_ms)
                number, anchor = account.budgets_made + 1, now_ms if anchor_ms is None else anchor_ms
                made = update(accounts).where(accounts.c.id == account_id).values(budgets_made=number)
                await connection.execute(made)
                await connection.execute(
                    insert(budgets).values(
                        account_id=account_id,
                        number=number,
                        scope=scope,
                        scope_id=scope_id,
                        meter=meter,
                        amount=amount,
                        period=str(period),
                        anchor_at_ms=anchor,
                        time_zone=time_zone,
                        created_at_ms=now_ms,
                    )
                )
            await changed(connection, account_id, "budget", now_ms)
            before = None if old is None else {"amount": old.amount, "period": old.period}
            after = {"amount": amount, "period": str(period)}
            detail = {"scope": scope, "id": scope_id, "meter": meter, "before": before, "after": after}
            await record(connection, "set_budget", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)
            (found,) = await connection.execute(_live_budgets(account_id, scope, scope_id, meter))
            return account_id, budget_of(found)

    async def remove_budget(self, account_id: str, number: int, *, now_ms: int, actor: str = "system") -> None:
        """Raises AccountNotFound, NotFound, StoreUnavailable."""
        async with self._database.write() as connection:
            await lock_account(connection, account_id)
            if not await _remove(connection, account_id, number, now_ms):
                raise NotFound
            await changed(connection, account_id, "budget", now_ms)
            detail = {"number": number}
            await record(connection, "remove_budget", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)

    async def budgets(self, account_id: str) -> tuple[Budget, ...]:
        async with self._database.read() as connection:
            return await budgets_of(connection, account_id)

    async def _account_of(self, scope: str, scope_id: str) -> str:
        table = _SCOPES[scope]
        if not storable(scope_id):
            raise NotFound
        async with self._database.read() as connection:
            found = await connection.execute(select(table.c.account_id).where(table.c.id == scope_id))
            account_id = found.scalar_one_or_none()
        if account_id is None:  # unknown, or a service key, which has no account to limit
            raise NotFound
        return str(account_id)

    async def _find(self, table: Any, account_id: str, ref: str) -> Row[Any] | None:
        if not storable(ref):
            return None
        query = select(table).where(
            table.c.account_id == account_id, or_(table.c.external_id == ref, table.c.id == ref)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        own = [row for row in rows if row.id == ref]
        return (own or rows)[0] if rows else None

    async def _list(self, table: Any, account_id: str, after: str | None, limit: int, read: Any) -> Page[Any]:
        size = page_size(limit)
        query = select(table).where(table.c.account_id == account_id).order_by(table.c.id).limit(size + 1)
        if after is not None:
            query = query.where(table.c.id > after)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return page_of(rows, size, read, lambda row: str(row.id))


async def budgets_of(connection: AsyncConnection, account_id: str) -> tuple[Budget, ...]:
    """The account's live budgets."""
    query = (
        select(budgets)
        .where(budgets.c.account_id == account_id, budgets.c.removed_at_ms == 0)
        .order_by(budgets.c.number)
    )
    return tuple(budget_of(row) for row in await connection.execute(query))


def budget_of(row: Row[Any]) -> Budget:
    return Budget(
        number=row.number,
        scope=row.scope,
        scope_id=row.scope_id,
        meter=row.meter,
        amount=row.amount,
        period=parse_period(row.period),
        anchor_at_ms=row.anchor_at_ms,
        time_zone=row.time_zone,
        raises=tuple((amount, until_ms) for amount, until_ms in row.raises),
    )


async def raise_budget(
    connection: AsyncConnection, account_id: str, user_id: str, *, meter: str, amount: int, ends_at_ms: int, now_ms: int
) -> bool:
    """A gift to a user lifts the ceiling of their budget in its meter: in the budget's running period, and not beyond
    the gift's own end. False when there is no such budget."""
    row = (await connection.execute(_live_budgets(account_id, "user", user_id, meter))).one_or_none()
    if row is None:
        return False
    budget = budget_of(row)
    _, period_ends_ms = bounds(budget.period, budget.anchor_at_ms, now_ms, budget.time_zone)
    until_ms = min((end_ms for end_ms in (period_ends_ms, ends_at_ms) if end_ms), default=0)
    live = [list(each) for each in budget.raises if each[1] == 0 or each[1] > now_ms]
    mine = (budgets.c.account_id == account_id, budgets.c.number == budget.number)
    await connection.execute(update(budgets).where(*mine).values(raises=[*live, [amount, until_ms]]))
    return True


async def member(connection: AsyncConnection, scope: str, scope_id: str, account_id: str) -> None:
    """Raises NotFound unless this team or user is the account's."""
    table: Any = _SCOPES[scope]
    found = await connection.execute(select(table.c.id).where(table.c.id == scope_id, table.c.account_id == account_id))
    if found.first() is None:
        raise NotFound(f"There is no such {scope} in this account.")


def _live_budgets(account_id: str, scope: str, scope_id: str, meter: str) -> Any:
    return select(budgets).where(
        budgets.c.account_id == account_id,
        budgets.c.scope == scope,
        budgets.c.scope_id == scope_id,
        budgets.c.meter == meter,
        budgets.c.removed_at_ms == 0,
    )


async def _remove(connection: AsyncConnection, account_id: str, number: int, now_ms: int) -> bool:
    """A budget's row stays: charges that were admitted under it still name it."""
    done = await connection.execute(
        update(budgets)
        .where(budgets.c.account_id == account_id, budgets.c.number == number, budgets.c.removed_at_ms == 0)
        .values(removed_at_ms=now_ms)
    )
    return bool(done.rowcount)


async def _insert_user(connection: AsyncConnection, user: User) -> None:
    await connection.execute(
        insert(users).values(
            id=user.id,
            account_id=user.account_id,
            team_id=user.team_id,
            external_id=user.external_id,
            email=user.email,
            name=user.name,
            created_at_ms=user.created_at_ms,
        )
    )


async def _free(connection: AsyncConnection, table: Any, account_id: str, external_id: str | None) -> None:
    """Raises Conflict when the account already has one of this external id."""
    if external_id is None:
        return
    found = await connection.execute(
        select(table.c.id).where(table.c.account_id == account_id, table.c.external_id == external_id)
    )
    if found.first() is not None:
        raise Conflict(f"The external id {external_id} is taken in this account.", param="external_id")


def _external(value: str | None) -> str | None:
    if value is not None and (not value or len(value) > EXTERNAL_ID_MAX or not value.isprintable()):
        raise BadRequest("invalid_name", "An external id is printable and not too long.", param="external_id")
    return value


def _name(value: str) -> str:
    if not value or len(value) > EXTERNAL_ID_MAX or not value.isprintable():
        raise BadRequest("invalid_name", "A name is printable, not empty and not too long.", param="name")
    return value


def _team_of(row: Row[Any]) -> Team:
    return Team(row.id, row.account_id, row.external_id, row.name, row.created_at_ms)


def _user_of(row: Row[Any]) -> User:
    return User(row.id, row.account_id, row.team_id, row.external_id, row.email, row.name, row.created_at_ms)
