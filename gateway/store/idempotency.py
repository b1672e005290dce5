"""Requests that are done once: which ``Idempotency-Key`` is running, and what the finished ones answered.

Rules
1. A key belongs to a scope (whose credential, which account, which route) and to one body, known by its digest.
2. Only what succeeded is kept: a refusal frees its key, so that a repeat may succeed.
3. A request that never finished, because its worker died, blocks its key for ``RUNNING_MAX_MS``; whoever comes then
   takes it over. It has the same ``seed``, from which everything that it makes has its id: so it finds out how far the
   first one came, and makes nothing twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, delete, select, update

from gateway.errors import IdempotencyConflict, IdempotencyInFlight
from gateway.store.common import inserting, new_id
from gateway.store.database import Database
from gateway.store.schema_metering import idempotency

KEPT_MS: Final = 24 * 3_600_000
RUNNING_MAX_MS: Final = 10_000
RETRY_MAX_S: Final = 2


@dataclass(frozen=True, slots=True)
class Begun:
    """This request runs it. ``again``: another one did before, and never said how it ended."""

    scope: str
    key: str
    owner: str
    seed: str  # an id
    again: bool


@dataclass(frozen=True, slots=True)
class Replay:
    """It is done: the answer of then."""

    status: int
    answer: str


class Idempotency:
    """The table ``idempotency``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, scope: str, key: str, digest: str, *, now_ms: int) -> Begun | Replay:
        """Raises IdempotencyConflict (another body), IdempotencyInFlight, StoreUnavailable."""
        owner = new_id()
        values: dict[str, Any] = {
            "digest": digest,
            "status": 0,
            "answer": None,
            "owner": owner,
            "seed": owner,
            "started_at_ms": now_ms,
            "expires_at_ms": now_ms + KEPT_MS,
        }
        mine = (idempotency.c.scope == scope, idempotency.c.key == key)
        first = inserting(self._database.dialect, idempotency).on_conflict_do_nothing()
        async with self._database.write() as connection:
            if (await connection.execute(first, {"scope": scope, "key": key, **values})).rowcount:
                return Begun(scope, key, owner, owner, again=False)
            known = (await connection.execute(select(idempotency).where(*mine).with_for_update())).one_or_none()
            if known is None:  # it failed a moment ago, and its key is free again
                raise IdempotencyInFlight(retry_after_s=1)
            is_over = known.expires_at_ms <= now_ms
            if known.digest != digest and not is_over:
                raise IdempotencyConflict
            if known.status and not is_over:
                return Replay(known.status, known.answer)
            left_ms = known.started_at_ms + RUNNING_MAX_MS - now_ms
            if not known.status and not is_over and left_ms > 0:
                raise IdempotencyInFlight(retry_after_s=min(RETRY_MAX_S, -(-left_ms // 1000)))
            values["seed"] = owner if is_over else known.seed
            await connection.execute(update(idempotency).where(*mine).values(**values))
        return Begun(scope, key, owner, values["seed"], again=not is_over)

    async def finish(self, begun: Begun, *, status: int, answer: str) -> None:
        """Keep the answer, unless somebody else has taken it over. Raises StoreUnavailable."""
        kept = update(idempotency).where(*_owned(begun)).values(status=status, answer=answer)
        async with self._database.write() as connection:
            await connection.execute(kept)

    async def leave(self, begun: Begun) -> None:
        """Nobody knows how far it came: the next one takes it over at once. Raises StoreUnavailable."""
        left = update(idempotency).where(*_owned(begun), idempotency.c.status == 0).values(started_at_ms=0)
        async with self._database.write() as connection:
            await connection.execute(left)

    async def give_up(self, begun: Begun) -> None:
        """It was refused and did nothing: the key is free again. Raises StoreUnavailable."""
        async with self._database.write() as connection:
            await connection.execute(delete(idempotency).where(*_owned(begun), idempotency.c.status == 0))

    async def forget(self, *, now_ms: int) -> None:
        """Answers whose time is over. Raises StoreUnavailable."""
        async with self._database.write() as connection:
            await connection.execute(delete(idempotency).where(idempotency.c.expires_at_ms <= now_ms))


def _owned(begun: Begun) -> tuple[ColumnElement[bool], ...]:
    table = idempotency.c
    return (table.scope == begun.scope, table.key == begun.key, table.owner == begun.owner)
