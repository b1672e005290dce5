"""Step 1: whose call is it? Which key, whose account, and the user and team that the request names."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.domain.accounts import Caller
from gateway.errors import AccountNotFound, AmbiguousCredentials, InvalidApiKey, MissingApiKey, RequestError
from gateway.proxy.gateway import Gateway
from gateway.quota.keys import PREFIX

_NAME_CHARACTERS_MAX = 128


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
    """The account, team and user of this very call."""
    if caller.account is None:
        raise AccountNotFound("This is a service key: name the account in the Tollgate-Account header.")
    user, team = headers.get("Tollgate-User"), headers.get("Tollgate-Team")
    if user is None and team is None:
        return caller
    for name in (user, team):
        if name is not None and not 0 < len(name) <= _NAME_CHARACTERS_MAX:
            raise RequestError("Tollgate-User and Tollgate-Team take 1 to 128 characters.")
    return await gateway.callers.with_user(caller, user, team)


def account_ref(headers: Mapping[str, str]) -> str | None:
    return headers.get("Tollgate-Account")


def _all(headers: Mapping[str, str], name: str) -> list[str]:
    getall = getattr(headers, "getall", None)
    return list(getall(name, ())) if getall is not None else [value for key, value in headers.items() if key == name]
