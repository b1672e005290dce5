"""Step 1: whose call is it? Which key, whose account, and the user and team that the request names."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.domain.accounts import Caller
from gateway.errors import AccountNotFound, AmbiguousCredentials, BadRequest, InvalidApiKey, MissingApiKey, NotFound
from gateway.proxy.gateway import Gateway
from gateway.proxy.headers import named
from gateway.quota.keys import PREFIX

_NAME_CHARACTERS_MAX = 200  # as long as an external id may be


def key_of(headers: Mapping[str, str]) -> str:
    """The Tollgate key among the credentials sent. If exactly one of the two is ours, the other is dropped.

    Raises MissingApiKey, InvalidApiKey, AmbiguousCredentials.
    """
    authorization = headers.get("Authorization", "")
    scheme, _, bearer = authorization.partition(" ")
    bearer = bearer.strip() if scheme.lower() == "bearer" else ""
    header = headers.get("x-api-key", "").strip()
    ours = {key for key in (bearer, header) if key.startswith(PREFIX)}
    if len(ours) > 1:
        raise AmbiguousCredentials
    if ours:
        return ours.pop()
    if bearer or header or authorization:
        raise InvalidApiKey
    raise MissingApiKey


async def authenticate(gateway: Gateway, headers: Mapping[str, str]) -> tuple[str, Caller]:
    """The key and its caller, bound to the account, team and user that the request names."""
    if len(_all(headers, "Authorization")) > 1 or len(_all(headers, "x-api-key")) > 1:
        raise AmbiguousCredentials
    key = key_of(headers)
    caller = await gateway.callers.by_key(key, account_ref=account_ref(headers))
    return key, await bind(gateway, caller, headers)


async def bind(gateway: Gateway, caller: Caller, headers: Mapping[str, str]) -> Caller:
    """The account, team and user of this very call. A key that is bound to a team or user keeps it.

    Raises AccountNotFound, NotFound (team), BadRequest (invalid_header, too_many_users), StoreUnavailable.
    """
    if caller.account is None:
        raise AccountNotFound("This is a service key: name the account in the Tollgate-Account header.")
    user = named(headers, "Tollgate-User", _NAME_CHARACTERS_MAX)
    team = named(headers, "Tollgate-Team", _NAME_CHARACTERS_MAX)
    if user is None and team is None:
        return caller
    caller = await gateway.callers.with_user(caller, user, team)
    if team is not None and caller.team_id is None:
        raise NotFound("This account has no such team.", param="Tollgate-Team")
    if user is not None and caller.user_id is None:
        raise BadRequest(
            "too_many_users",
            "This account has named as many users as it may. Create this one first.",
            param="Tollgate-User",
        )
    return caller


def account_ref(headers: Mapping[str, str]) -> str | None:
    """The account that the request names: by our id or by the app's own. Raises BadRequest."""
    return named(headers, "Tollgate-Account", _NAME_CHARACTERS_MAX)


def _all(headers: Mapping[str, str], name: str) -> list[str]:
    getall = getattr(headers, "getall", None)
    return list(getall(name, ())) if getall is not None else [value for key, value in headers.items() if key == name]
