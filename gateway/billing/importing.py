"""A CSV file of accounts, checked as a whole before anything is made of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.billing.accounts import IMPORT_ROWS_MAX, AccountService
from gateway.billing.desk import shown
from gateway.domain.accounts import Account
from gateway.errors import RequestError
from gateway.store.bulk import BadRow, NewAccount

COLUMNS: Final = ("name", "plan", "email", "external_id")
FILE_BYTES_MAX: Final = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """``line`` is where the row ends in the file, the heading being line 1."""

    line: int
    account: NewAccount


def rows_of(data: bytes, name: str) -> list[Row]:
    """The rows of a file, which messages call ``name``. Raises RequestError that names the row."""
    if len(data) > FILE_BYTES_MAX:
        raise RequestError(f"{name}: the file is too large: split it.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{name}: not UTF-8.") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    seen: dict[str, int] = {}
    try:
        names = [name.strip() for name in next(reader, [])]
        unknown = [name for name in names if name not in COLUMNS]
        if "name" not in names or unknown or len(set(names)) != len(names):
            found = shown(", ".join(names)) or "nothing"
            raise RequestError(f"{name}: row 1: expected a heading of {', '.join(COLUMNS)}, found {found}.")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            rows.append(_row(name, reader.line_num, names, cells, seen))
            if len(rows) > IMPORT_ROWS_MAX:
                raise RequestError(f"{name}: more than {IMPORT_ROWS_MAX} rows: split it.")
    except csv.Error as error:
        raise RequestError(f"{name}: row {reader.line_num}: {error}.") from error
    return rows


def _row(file: str, line: int, names: list[str], cells: list[str], seen: dict[str, int]) -> Row:
    if len(cells) != len(names):
        raise RequestError(f"{file}: row {line}: expected {len(names)} columns, found {len(cells)}.")
    values = {name: cell.strip() or None for name, cell in zip(names, cells, strict=True)}
    external_id = values.get("external_id")
    if external_id is not None:
        if external_id in seen:
            raise RequestError(
                f"{file}: row {line}: the external id {external_id!r} stands in row {seen[external_id]} too."
            )
        seen[external_id] = line
    return Row(line, NewAccount(values["name"] or "", values.get("plan"), values.get("email"), external_id))


async def bring_in(accounts: AccountService, rows: Sequence[Row], name: str) -> tuple[Account, ...]:
    """Make all accounts of a file, or none. Raises RequestError that names the row, StoreUnavailable."""
    try:
        return await accounts.bring_in([row.account for row in rows])
    except BadRow as problem:
        line = rows[problem.index].line
        raise RequestError(f"{name}: row {line}: {problem.message} Nothing was imported.") from problem
