"""API keys: made and shown once, rotated with an overlap, revoked. Nobody can show a key a second time."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.billing.accounts import MemberService
from gateway.billing.desk import Desk, shown
from gateway.errors import NotFound, RequestError
from gateway.quota.keys import display_prefix, new_key
from gateway.store.common import PAGE_MAX, Page
from gateway.store.keys import Key


@dataclass(frozen=True, slots=True)
class FreshKey:
    """A key that was just made. ``text`` is the key itself: shown to whoever made it, then forgotten."""

    key: Key
    text: str


class KeyService:
    """Credentials of accounts, and of backends that act for many."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(
        self,
        account_ref: str | None,
        *,
        team_ref: str | None = None,
        user_ref: str | None = None,
        name: str = "",
        expires_at_ms: int = 0,
    ) -> FreshKey:
        """A key of the account, maybe of a team or user of it; without an account a service key.

        Raises AccountNotFound, NotFound (team, user), RequestError, StoreUnavailable.
        """
        desk = self._desk
        if account_ref is None and (team_ref is not None or user_ref is not None):
            raise RequestError("A service key has no team and no user.", param="team" if team_ref else "user")
        if 0 < expires_at_ms <= desk.now_ms():
            raise RequestError("The key's end must be in the future.", param="expires")
        account = None if account_ref is None else await desk.account(account_ref)
        members = MemberService(desk)
        team = user = None
        if account is not None:
            team = None if team_ref is None else await members.team(account.id, team_ref)
            user = None if user_ref is None else await members.user(account.id, user_ref)
        text = new_key()
        key = await desk.store.keys.create(
            digest=desk.hasher.digest(text),
            prefix=display_prefix(text),
            now_ms=desk.now_ms(),
            account_id=None if account is None else account.id,
            team_id=None if team is None else team.id,
            user_id=None if user is None else user.id,
            name=name,
            expires_at_ms=expires_at_ms,
            actor=desk.actor,
        )
        return FreshKey(key, text)

    async def page(
        self, account_ref: str | None, *, revoked: bool = False, after: str | None = None, limit: int = 100
    ) -> Page[Key]:
        """The account's keys, or without one the service keys. Raises AccountNotFound, StoreUnavailable."""
        account_id = None if account_ref is None else (await self._desk.account(account_ref)).id
        return await self._desk.store.keys.list(account_id, after=after, limit=limit, revoked=revoked)

    async def list(self, account_ref: str | None, *, revoked: bool = False) -> tuple[Key, ...]:
        """The account's keys, or without one the service keys. Raises AccountNotFound, StoreUnavailable."""
        account_id = None if account_ref is None else (await self._desk.account(account_ref)).id
        found: list[Key] = []
        after: str | None = None
        while True:
            page = await self._desk.store.keys.list(account_id, after=after, limit=PAGE_MAX, revoked=revoked)
            found += page.items
            after = page.next
            if after is None:
                return tuple(found)

    async def get(self, key_id: str) -> Key:
        """Raises NotFound, StoreUnavailable."""
        try:
            return await self._desk.store.keys.get(key_id)
        except NotFound:
            raise NotFound(f"There is no key {shown(key_id)}.", param="key") from None

    async def rotate(self, key_id: str, *, overlap_ms: int = 0) -> FreshKey:
        """A new key in place of this one, which still works for the overlap. Raises NotFound, RequestError (revoked),
        StoreUnavailable."""
        desk = self._desk
        old = await self.get(key_id)
        if old.revoked_at_ms:
            raise RequestError("This key is revoked: make a new one.", param="key")
        text = new_key()
        key = await desk.store.keys.rotate(
            key_id,
            digest=desk.hasher.digest(text),
            prefix=display_prefix(text),
            now_ms=desk.now_ms(),
            overlap_ms=overlap_ms,
            actor=desk.actor,
        )
        if key.account_id is not None:
            await desk.deliver(key.account_id)
        return FreshKey(key, text)

    async def revoke(self, key_id: str) -> Key:
        """From its next call on the key is unknown; twice is as once. Raises NotFound, StoreUnavailable."""
        desk = self._desk
        before = await self.get(key_id)
        key = await desk.store.keys.revoke(key_id, now_ms=desk.now_ms(), actor=desk.actor)
        if key.account_id is not None and not before.revoked_at_ms:
            await desk.deliver(key.account_id)
        return key
