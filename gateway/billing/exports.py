"""Usage and transactions as files: CSV for spreadsheets, JSON Lines for programs; a page in memory at a time.

Rules
1. CSV is RFC 4180: a heading, CRLF, quotes where they are needed, UTF-8.
2. A cell that a spreadsheet would take for a formula begins with an apostrophe. Numbers stay what they are.
3. Newest first, as the lists are. What is written meanwhile is not in the file: it goes on from the page before.

Source: https://www.rfc-editor.org/rfc/rfc4180, https://owasp.org/www-community/attacks/CSV_Injection
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final, TypeVar

from gateway.billing.desk import Desk
from gateway.billing.views import View, transaction_view, usage_view
from gateway.store.common import PAGE_MAX, Page
from gateway.store.ledger import ANY_TIME, Times
from gateway.store.usage import Filter

USAGE_COLUMNS: Final = (
    "id", "seq", "state", "at", "started_at", "month", "account", "team", "user", "key", "route", "model", "upstream",
    "plan", "feature", "job", "job_type", "wallet", "held", "charged", "overrun", "balance_after", "basis",
    "card_version", "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens",
    "total_tokens", "status", "end", "shadow", "waived", "metadata",
)  # fmt: skip
TRANSACTION_COLUMNS: Final = ("id", "at", "wallet", "kind", "amount", "grant", "reason", "seq_first", "seq_last")
CSV_TYPE: Final = "text/csv"
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?", re.ASCII)
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
T = TypeVar("T")


class ExportService:
    """Everything of an account, page by page."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def usage(self, account_id: str, which: Filter | None = None) -> AsyncIterator[list[View]]:
        """Its usage records. Raises StoreUnavailable."""
        log, meters = self._desk.store.usage, self._desk.catalog().meters
        async for page in _pages(lambda cursor: log.list(account_id, which, cursor=cursor, limit=PAGE_MAX)):
            yield [usage_view(row, meters.get(row.wallet)) for row in page]

    async def transactions(
        self, account_id: str, *, wallet: str | None = None, times: Times = ANY_TIME
    ) -> AsyncIterator[list[View]]:
        """What moved its balances. Raises StoreUnavailable."""
        ledger, meters = self._desk.store.ledger, self._desk.catalog().meters
        async for page in _pages(
            lambda cursor: ledger.transactions(account_id, wallet=wallet, times=times, cursor=cursor, limit=PAGE_MAX)
        ):
            yield [transaction_view(row, meters.get(row.wallet)) for row in page]


async def _pages(read: Callable[[str | None], Awaitable[Page[T]]]) -> AsyncIterator[tuple[T, ...]]:
    """At least one, if an empty one."""
    cursor: str | None = None
    while True:
        page = await read(cursor)
        yield page.items
        cursor = page.next
        if cursor is None:
            return


def heading(columns: tuple[str, ...]) -> str:
    return _written([columns])


def csv_lines(objects: Iterable[View], columns: tuple[str, ...]) -> str:
    """These objects' rows."""
    return _written([_cell(each[name]) for name in columns] for each in objects)


def json_lines(objects: Iterable[View]) -> str:
    return "".join(json.dumps(each, ensure_ascii=False, separators=(",", ":")) + "\n" for each in objects)


def _written(rows: Iterable[Iterable[str]]) -> str:
    page = io.StringIO()
    csv.writer(page, lineterminator="\r\n").writerows(rows)
    return page.getvalue()


def _cell(value: object) -> str:
    """A value as a cell's text (rule 2)."""
    match value:
        case None:
            return ""
        case dict():
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":")) if value else ""
        case _:
            text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) and _NUMBER.fullmatch(text) is None else text
