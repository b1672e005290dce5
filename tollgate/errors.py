"""What a metering request can come to instead of an answer: one small tree, and its reasons are Tollgate's codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class MeteringError(Exception):
    """``reason``: the stable code, such as ``insufficient_tokens``. ``retry_after``: seconds after which the same
    request may succeed; None when waiting does not help. ``detail``: what Tollgate told of the deciding limit."""

    reason: str
    message: str
    status: int = 0  # 0: no answer came
    retry_after: float | None = None
    param: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class Refused(MeteringError):
    """Quota, plan, budget or limit says no."""


class InvalidRequest(MeteringError):
    """The request itself is wrong: its fields, its key, or what it names."""


class Conflict(MeteringError):
    """The hold has ended otherwise, or the Idempotency-Key was used for something else."""


class Unavailable(MeteringError):
    """Tollgate did not answer, or cannot decide now. Whether anything was done is known after a repeat with the same
    Idempotency-Key."""
