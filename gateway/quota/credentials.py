"""Who is calling, as a request's headers say it: the same for metered calls and for the billing APIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from gateway.domain.accounts import Caller
from gateway.errors import AccountNotFound, AmbiguousCredentials, BadRequest, InvalidApiKey, MissingApiKey, NotFound
from gateway.quota.callers import Callers
from gateway.quota.keys import PREFIX

NAME_CHARACTERS_MAX: Final = 200  # as long as an external id may be
_MEMBERS: Final = ("Tollgate-User", "Tollgate-Team")


class Headers(Protocol):
    """As they were sent: names in any case, and some of them twice."""

    def getall(self, name: str, default: tuple[()], /) -> Sequence[str]: ...


def key_of(headers: Headers) -> str:
    """The Tollgate key among the credentials sent. If exactly one of the two is ours, the other is dropped.

    Raises MissingApiKey, InvalidApiKey, AmbiguousCredentials.
    """
    authorizations, keys = headers.getall("Authorization", ()), headers.getall("x-api-key", ())
    if authorizations[1:] or keys[1:]:
        raise AmbiguousCredentials
    authorization = authorizations[0] if authorizations else ""
    scheme, _, bearer = authorization.partition(" ")
    bearer = bearer.strip() if scheme.lower() == "bearer" else ""
    header = keys[0].strip() if keys else ""
    if bearer.startswith(PREFIX):
        if header != bearer and header.startswith(PREFIX):
            raise AmbiguousCredentials
        return bearer
    if header.startswith(PREFIX):
        return header
    if authorization or header:
        raise InvalidApiKey
    raise MissingApiKey


def account_ref(headers: Mapping[str, str]) -> str | None:
    """The account that the request names: by our id or by the app's own. Raises BadRequest."""
    return named(headers, "Tollgate-Account", NAME_CHARACTERS_MAX)


async def bind(callers: Callers, caller: Caller, headers: Mapping[str, str]) -> Caller:
    """The account, team and user of this very call. A key that is bound to a team or user keeps it.

    Raises AccountNotFound, NotFound (team), BadRequest (invalid_header, too_many_users), StoreUnavailable.
    """
    if caller.account is None:
        raise AccountNotFound("This is a service key: name the account in the Tollgate-Account header.")
    if headers.keys().isdisjoint(_MEMBERS):
        return caller
    user = named(headers, "Tollgate-User", NAME_CHARACTERS_MAX)
    team = named(headers, "Tollgate-Team", NAME_CHARACTERS_MAX)
    return await bound(callers, caller, user=user, team=team, prefix="Tollgate-")


async def bound(callers: Callers, caller: Caller, *, user: str | None, team: str | None, prefix: str = "") -> Caller:
    """The caller as this user of this team. ``prefix``: what stands before ``User`` and ``Team`` where they were named.

    Raises NotFound (team), BadRequest (too_many_users), StoreUnavailable.
    """
    if user is None and team is None:
        return caller
    caller = await callers.with_user(caller, user, team)
    if team is not None and caller.team_id is None:
        raise NotFound("This account has no such team.", param=f"{prefix}Team" if prefix else "team")
    if user is not None and caller.user_id is None:
        raise BadRequest(
            "too_many_users",
            "This account has named as many users as it may. Create this one first.",
            param=f"{prefix}User" if prefix else "user",
        )
    return caller


def named(headers: Mapping[str, str], name: str, characters_max: int) -> str | None:
    """A header's text that names something; None when it was not sent. Raises BadRequest: invalid_header."""
    if name not in headers:
        return None
    value = headers[name]
    if not (0 < len(value) <= characters_max and value.isprintable()):
        raise BadRequest("invalid_header", f"{name} takes 1 to {characters_max} printable characters.", param=name)
    return value
