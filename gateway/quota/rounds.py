"""Accounts that something is due for, some at a time and the oldest first, when nobody calls for them.

Rules
1. One that cannot be served, or whose server is away, keeps no other waiting: not in its round, and, however many they
   are, not in the rounds after it either: those begin behind them, and come to them again after the end.

Not here: pushes (``turn``) and versions (``versions``), which have a number to begin behind.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from gateway.errors import AccountNotFound, BadRequest
from limits.errors import LimitsError

log = logging.getLogger(__name__)

SERVED_AT_ONCE: Final = 100


class Waiting(Protocol):
    """Answers accounts in a lasting order, without the first ``skip``; whoever is served is not among them any more."""

    async def __call__(self, *, now_ms: int, limit: int, skip: int) -> Sequence[str]: ...


class Rounds:
    """``what`` is due, as the log names it."""

    def __init__(self, what: str, waiting: Waiting, serve: Callable[[str, int], Awaitable[None]]) -> None:
        self._what = what
        self._waiting = waiting
        self._serve = serve
        self._skip = 0  # so many at the beginning could not be served

    async def go(self, now_ms: int) -> None:
        """One round. Raises StoreUnavailable."""
        accounts = await self._waiting(now_ms=now_ms, limit=SERVED_AT_ONCE, skip=self._skip)
        failed = 0
        for account_id in accounts:
            try:
                await self._serve(account_id, now_ms)
            except (BadRequest, AccountNotFound) as error:  # such as a config that asks for terms it does not have
                failed += 1
                log.warning("%s of account %s waits: %s", self._what, account_id, error.code)
            except LimitsError as error:
                failed += 1
                log.warning("%s of account %s has not reached Redis: %s", self._what, account_id, error)
        self._skip = self._skip + failed if len(accounts) == SERVED_AT_ONCE else 0
