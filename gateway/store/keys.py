"""API keys: who may call, and for whom. Only a key's HMAC is stored; whoever makes one hands it in.

Rules
1. Unknown, revoked and rotated-away keys are alike: not found.
2. A member key belongs to one account, maybe to a team or user of it; a service key to none.
3. A change of a member key bumps its account's ``rev``, so that it counts on the very next call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, Select, func, insert, select, update

from gateway.domain.accounts import Account, Budget, Caller
from gateway.errors import NotFound
from gateway.store.accounts import CURRENT, SUBSCRIPTION_COLUMNS, Accounts, account_of
from gateway.store.common import Page, changed, lock_account, new_id, page_of, page_size, record, storable
from gateway.store.database import Database
from gateway.store.members import Members, budgets_of, member
from gateway.store.schema import accounts, keys, subscriptions, users

_CALLER: Final[Select[Any]] = (
    select(
        keys.c.id.label("key_id"),
        keys.c.account_id.label("key_account_id"),
        func.coalesce(keys.c.team_id, users.c.team_id).label("team_id"),
        keys.c.user_id,
        keys.c.expires_at_ms,
        *accounts.c,
        *SUBSCRIPTION_COLUMNS,
    )
    .select_from(
        keys.outerjoin(accounts, accounts.c.id == keys.c.account_id)
        .outerjoin(subscriptions, CURRENT)
        .outerjoin(users, users.c.id == keys.c.user_id)
    )
    .where(keys.c.revoked_at_ms == 0)
)


@dataclass(frozen=True, slots=True)
class Key:
    """What lists tell of a key. ``account_id`` None = a service key."""

    id: str
    account_id: str | None
    team_id: str | None
    user_id: str | None
    prefix: str
    name: str
    created_at_ms: int
    expires_at_ms: int
    revoked_at_ms: int


class Keys:
    """Keys made, rotated and revoked."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        *,
        digest: bytes,
        prefix: str,
        now_ms: int,
        account_id: str | None = None,
        team_id: str | None = None,
        user_id: str | None = None,
        name: str = "",
        expires_at_ms: int = 0,
        actor: str = "system",
    ) -> Key:
        """A member key of ``account_id``, or a service key without one.

        Raises AccountNotFound, NotFound (team, user), Conflict (the digest is known), StoreUnavailable.
        """
        assert account_id is not None or (team_id is None and user_id is None), "a service key has no team or user"
        key = Key(new_id(), account_id, team_id, user_id, prefix, name, now_ms, expires_at_ms, 0)
        async with self._database.write() as connection:
            if account_id is not None:
                await lock_account(connection, account_id)
                for scope, scope_id in (("team", team_id), ("user", user_id)):
                    if scope_id is not None:
                        await member(connection, scope, scope_id, account_id)
            await connection.execute(insert(keys).values(**_values(key, digest)))
            detail = {"key": key.id, "prefix": prefix}
            await record(connection, "create_key", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)
        return key

    async def revoke(self, key_id: str, *, now_ms: int, actor: str = "system") -> Key:
        """From now on the key is unknown. Revoking it again changes nothing. Raises NotFound, StoreUnavailable."""
        key = await self.get(key_id)
        if key.revoked_at_ms:
            return key
        async with self._database.write() as connection:
            if key.account_id is not None:
                await lock_account(connection, key.account_id)
            await connection.execute(
                update(keys).where(keys.c.id == key_id, keys.c.revoked_at_ms == 0).values(revoked_at_ms=now_ms)
            )
            if key.account_id is not None:
                await changed(connection, key.account_id, "revoke_key", now_ms)
            detail = {"key": key_id}
            await record(connection, "revoke_key", account_id=key.account_id, actor=actor, now_ms=now_ms, detail=detail)
        return await self.get(key_id)

    async def rotate(
        self, key_id: str, *, digest: bytes, prefix: str, now_ms: int, overlap_ms: int = 0, actor: str = "system"
    ) -> Key:
        """A new key in place of this one, which ends after the overlap. Raises NotFound (also when it is revoked),
        StoreUnavailable."""
        old = await self.get(key_id)
        if old.revoked_at_ms:
            raise NotFound
        new = Key(new_id(), old.account_id, old.team_id, old.user_id, prefix, old.name, now_ms, old.expires_at_ms, 0)
        ends_ms = now_ms + overlap_ms if not old.expires_at_ms else min(old.expires_at_ms, now_ms + overlap_ms)
        async with self._database.write() as connection:
            if old.account_id is not None:
                await lock_account(connection, old.account_id)
            await connection.execute(insert(keys).values(**_values(new, digest)))
            await connection.execute(
                update(keys).where(keys.c.id == key_id).values(expires_at_ms=ends_ms, rotated_to=new.id)
            )
            if old.account_id is not None:
                await changed(connection, old.account_id, "rotate_key", now_ms)
            detail = {"key": key_id, "to": new.id}
            await record(connection, "rotate_key", account_id=old.account_id, actor=actor, now_ms=now_ms, detail=detail)
        return new

    async def get(self, key_id: str) -> Key:
        """Raises NotFound, StoreUnavailable."""
        if not storable(key_id):
            raise NotFound
        async with self._database.read() as connection:
            row = (await connection.execute(select(keys).where(keys.c.id == key_id))).one_or_none()
        if row is None:
            raise NotFound
        return _key_of(row)

    async def list(
        self, account_id: str | None, *, after: str | None = None, limit: int = 100, revoked: bool = False
    ) -> Page[Key]:
        """The account's keys, or the service keys, in the order they were made."""
        size = page_size(limit)
        query = select(keys).where(keys.c.account_id == account_id).order_by(keys.c.id).limit(size + 1)
        if not revoked:
            query = query.where(keys.c.revoked_at_ms == 0)
        if after is not None:
            query = query.where(keys.c.id > after)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return page_of(rows, size, _key_of, lambda row: str(row.id))


class Callers:
    """What authentication asks: one statement each, two when the account has budgets."""

    def __init__(self, database: Database, accounts: Accounts, members: Members) -> None:
        self._database = database
        self._accounts = accounts
        self._members = members

    async def caller_by_digest(self, digest: bytes) -> Caller | None:
        """Whose key this is; None when unknown or revoked. Its expiry is the reader's to check, since a caller may be
        cached past it. Raises StoreUnavailable."""
        async with self._database.read() as connection:
            row = (await connection.execute(_CALLER.where(keys.c.digest == digest))).one_or_none()
            if row is None:
                return None
            if row.key_account_id is None:
                return Caller(row.key_id, None, None, None, (), row.expires_at_ms, service=True)
            budgets = await budgets_of(connection, row.id) if row.budgets_made else ()
        return Caller(row.key_id, account_of(row), row.team_id, row.user_id, budgets, row.expires_at_ms)

    async def account_by_ref(self, ref: str) -> tuple[Account, tuple[Budget, ...]] | None:
        """An account by our id or its external id, with its budgets. Raises StoreUnavailable."""
        account = await self._accounts.by_ref(ref)
        return None if account is None else (account, await self._members.budgets(account.id))

    async def user_for(self, account_id: str, external_id: str, *, now_ms: int) -> str | None:
        """As ``Members.user_for``."""
        return await self._members.user_for(account_id, external_id, now_ms=now_ms)

    async def team_for(self, account_id: str, ref: str) -> str | None:
        """As ``Members.team_for``."""
        return await self._members.team_for(account_id, ref)


def _values(key: Key, digest: bytes) -> dict[str, Any]:
    return {
        "id": key.id,
        "account_id": key.account_id,
        "team_id": key.team_id,
        "user_id": key.user_id,
        "digest": digest,
        "prefix": key.prefix,
        "name": key.name,
        "created_at_ms": key.created_at_ms,
        "expires_at_ms": key.expires_at_ms,
    }


def _key_of(row: Row[Any]) -> Key:
    return Key(
        id=row.id,
        account_id=row.account_id,
        team_id=row.team_id,
        user_id=row.user_id,
        prefix=row.prefix,
        name=row.name,
        created_at_ms=row.created_at_ms,
        expires_at_ms=row.expires_at_ms,
        revoked_at_ms=row.revoked_at_ms,
    )
