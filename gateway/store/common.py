"""What all tables' modules share: ids, pages, the account's lock, and the marks that a change leaves behind.

Rules
1. Every transaction that changes something of an account locks the account's row first (``lock_account``): then two of
   them cannot deadlock, and each sees what the other wrote.
2. What a cached caller or Redis must learn bumps the account's ``rev`` and writes a push in the same transaction
   (``changed``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import ARRAY, ColumnElement, Row, Text, any_, bindparam, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import uuid7

from gateway.errors import AccountNotFound
from gateway.store import schema
from gateway.store.database import Dialect

T = TypeVar("T")
PAGE_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; ``next`` is the cursor of the following one, None at the end."""

    items: tuple[T, ...]
    next: str | None


def new_id() -> str:
    """A UUIDv7: ids sort by age."""
    return str(uuid7())


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def storable(text: str) -> bool:
    """Whether a database can hold this text at all: whatever it can't hold, it doesn't have."""
    if "\x00" in text:
        return False
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def page_size(limit: int) -> int:
    return max(1, min(limit, PAGE_MAX))


def page_of(
    rows: Sequence[Row[Any]], limit: int, read: Callable[[Row[Any]], T], cursor: Callable[[Row[Any]], str]
) -> Page[T]:
    """A page from up to ``limit`` + 1 rows: the one too many only tells that there is more."""
    items = tuple(read(row) for row in rows[:limit])
    return Page(items, cursor(rows[limit - 1]) if len(rows) > limit else None)


def among(dialect: Dialect, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """``column`` is one of the texts in parameter ``name``: one statement for any number of them (see ``texts``)."""
    if dialect == "postgresql":
        return column == any_(bindparam(name, type_=ARRAY(Text)))
    each = func.json_each(bindparam(name, type_=schema.Json())).table_valued("value")
    return column.in_(select(each.c.value))


def inserting(dialect: Dialect, table: Any) -> Any:
    """The dialect's INSERT, which knows ON CONFLICT."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


async def lock_account(connection: AsyncConnection, account_id: str) -> Row[Any]:
    """The account's row, locked until the transaction's end. Raises AccountNotFound."""
    found = await connection.execute(
        select(schema.accounts).where(schema.accounts.c.id == account_id).with_for_update(key_share=True)
    )
    row = found.one_or_none()
    if row is None:
        raise AccountNotFound
    return row


async def changed(connection: AsyncConnection, account_id: str, cause: str, now_ms: int) -> None:
    """Tell cached callers and Redis: the account's next ``rev``, and a push."""
    accounts = schema.accounts
    await connection.execute(update(accounts).where(accounts.c.id == account_id).values(rev=accounts.c.rev + 1))
    await connection.execute(insert(schema.pushes).values(account_id=account_id, cause=cause, created_at_ms=now_ms))


async def record(
    connection: AsyncConnection,
    action: str,
    *,
    account_id: str | None,
    actor: str,
    now_ms: int,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """One line of the audit log. ``detail`` never holds a key or a digest."""
    await connection.execute(
        insert(schema.audit_log).values(
            account_id=account_id, actor=actor, action=action, detail=dict(detail or {}), created_at_ms=now_ms
        )
    )
