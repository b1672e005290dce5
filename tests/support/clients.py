"""Clients of Redis whose patience no busy machine exhausts: for tests in which time is not what is tested."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from limits.client import Client, connect
from limits.connection import Timing

PATIENT_S = 30.0
AT_ONCE_S = 5.0  # without waiting for any such deadline
PATIENT = Timing(command_timeout_s=PATIENT_S, connect_timeout_s=PATIENT_S, silence_s=PATIENT_S)


@contextlib.asynccontextmanager
async def client_of(url: str, *, timing: Timing = PATIENT, **options: Any) -> AsyncIterator[Client]:
    """A client of its own, closed at the end; the product's own patience is ``timing=Timing()``."""
    client = connect(url, timing=timing, **options)
    try:
        yield client
    finally:
        await client.close()
