"""Stripe's API: one place that knows its SDK, its errors and how long it may take.

Rules
1. The SDK is loaded when it is first needed: it takes a quarter of a second and 25 MB, which most processes never need.
2. An error of Stripe's is one of ours: its words stay in the log, without anything that was sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, Final

from gateway.domain.stripe import Access
from gateway.errors import PaymentProviderRefused, PaymentProviderUnavailable

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 20.0
RETRIES: Final = 2


@asynccontextmanager
async def stripe_client(access: Access, *, within_s: float = TIMEOUT_S) -> AsyncIterator[Any]:
    """The SDK's ``StripeClient`` for requests that take ``within_s`` together.

    Raises PaymentProviderUnavailable, PaymentProviderRefused.
    """
    stripe = import_module("stripe")
    http = stripe.AIOHTTPClient(timeout=min(within_s, TIMEOUT_S))
    client = stripe.StripeClient(
        access.secret_key, http_client=http, base_addresses={"api": access.url}, max_network_retries=RETRIES
    )
    try:
        async with asyncio.timeout(within_s):
            yield client
    except (stripe.APIConnectionError, stripe.RateLimitError, TimeoutError) as error:
        log.warning("Stripe does not answer: %s", type(error).__name__)
        raise PaymentProviderUnavailable from error
    except stripe.StripeError as error:
        status, code, request = error.http_status, error.code, error.request_id
        log.error("Stripe refused: %s, status %s, code %s, request %s", type(error).__name__, status, code, request)
        raise (PaymentProviderUnavailable if (status or 0) >= 500 else PaymentProviderRefused) from error
    finally:
        await http.close_async()


def plain(found: Any) -> dict[str, Any]:
    """An object of the SDK's as its JSON."""
    return dict(found.to_dict())
