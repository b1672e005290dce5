"""``tollgate export``: every account's usage and transactions as files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from gateway.cli import groups
from gateway.cli.frame import command
from gateway.cli.reading import span
from gateway.cli.reports import From, To
from gateway.cli.terminal import Output, Progress, record

if TYPE_CHECKING:
    from gateway.billing.office import Office

Page = list[dict[str, object]]


class Format(StrEnum):
    CSV = "csv"
    JSONL = "jsonl"


@command(groups.app, "export", rich_help_panel=groups.RUNNING)
async def export(
    office: Office,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Made when it is not there.")],
    written_as: Annotated[Format, typer.Option("--format", help="CSV, or a JSON object per line.")] = Format.CSV,
    from_: From = None,
    to: To = None,
) -> Output:
    """Write the usage and the transactions of all accounts into files."""
    from gateway.billing.exports import TRANSACTION_COLUMNS, USAGE_COLUMNS
    from gateway.store.ledger import Times
    from gateway.store.usage import Filter

    from_ms, to_ms = span(from_, to)
    total = await office.audit.count()
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress("export", total)
    with (
        _opened(folder, "usage", written_as, USAGE_COLUMNS) as usage,
        _opened(folder, "transactions", written_as, ("account", *TRANSACTION_COLUMNS)) as transactions,
    ):
        try:
            async for account_id in office.desk.store.accounts.ids():
                await usage.write(office.exports.usage(account_id, Filter(from_ms=from_ms, to_ms=to_ms)))
                entries = office.exports.transactions(account_id, times=Times(from_ms, to_ms))
                await transactions.write(entries, account=account_id)
                progress.step()
        finally:
            progress.close()
    return record(
        {
            "accounts": total,
            "usage": usage.rows,
            "transactions": transactions.rows,
            "files": [str(usage.path), str(transactions.path)],
        }
    )


class Sheet:
    """A file that grows page by page."""

    def __init__(self, path: Path, file: TextIO, written_as: Format, columns: tuple[str, ...]) -> None:
        self.path = path
        self.rows = 0
        self._file = file
        self._written_as = written_as
        self._columns = columns

    async def write(self, pages: AsyncIterator[Page], **added: str) -> None:
        from gateway.billing.exports import csv_lines, json_lines

        async for page in pages:
            rows = [{**added, **each} for each in page] if added else page
            is_csv = self._written_as is Format.CSV
            self._file.write(csv_lines(rows, self._columns) if is_csv else json_lines(rows))
            self.rows += len(rows)


@contextmanager
def _opened(folder: Path, name: str, written_as: Format, columns: tuple[str, ...]) -> Iterator[Sheet]:
    """A file is there when it is whole: until then it is ``….part``."""
    from gateway.billing.exports import heading

    path = folder / f"{name}.{written_as.value}"
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        if written_as is Format.CSV:
            file.write(heading(columns))
        yield Sheet(path, file, written_as, columns)
    part.replace(path)
