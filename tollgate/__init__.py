"""Tollgate's client for metering work outside the proxy."""

from tollgate.asynchronous import AsyncClient, AsyncHold
from tollgate.client import Client, Hold
from tollgate.errors import Conflict, InvalidRequest, MeteringError, Refused, Unavailable
from tollgate.wire import HoldState, Item, Use

__all__ = [
    "AsyncClient",
    "AsyncHold",
    "Client",
    "Conflict",
    "Hold",
    "HoldState",
    "InvalidRequest",
    "Item",
    "MeteringError",
    "Refused",
    "Unavailable",
    "Use",
]
