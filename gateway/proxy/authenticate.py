"""Step 1: whose call is it? Which key, whose account, and the user and team that the request names."""

from __future__ import annotations

from multidict import CIMultiDictProxy

from gateway.domain.accounts import Caller
from gateway.proxy.gateway import Gateway
from gateway.quota.credentials import account_ref, bind, key_of


async def authenticate(gateway: Gateway, headers: CIMultiDictProxy[str]) -> tuple[str, Caller]:
    """The key and its caller, bound to the account, team and user that the request names."""
    key = key_of(headers)
    caller = await gateway.callers.by_key(key, account_ref=account_ref(headers))
    return key, await bind(gateway.callers, caller, headers)
