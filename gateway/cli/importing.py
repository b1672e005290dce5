"""A CSV file of accounts, checked as a whole before anything is made of it."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from gateway.billing.accounts import IMPORT_ROWS_MAX
from gateway.errors import RequestError
from gateway.store.bulk import NewAccount

COLUMNS: Final = ("name", "plan", "email", "external_id")
_BYTES_MAX: Final = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """``line`` is where the row ends in the file, the heading being line 1."""

    line: int
    account: NewAccount


def rows_of(file: Path) -> list[Row]:
    """The file's rows. Raises RequestError that names the row, or OSError."""
    if file.stat().st_size > _BYTES_MAX:
        raise RequestError(f"{file}: the file is too large: split it.")
    with file.open(encoding="utf-8-sig", newline="") as text:
        try:
            return _rows(file, text)
        except UnicodeDecodeError as error:
            raise RequestError(f"{file}: not UTF-8.") from error


def _rows(file: Path, text: TextIO) -> list[Row]:
    reader = csv.reader(text, strict=True)
    rows: list[Row] = []
    seen: dict[str, int] = {}
    try:
        names = [name.strip() for name in next(reader, [])]
        unknown = [name for name in names if name not in COLUMNS]
        if "name" not in names or unknown or len(set(names)) != len(names):
            found = ", ".join(names) or "nothing"
            raise RequestError(f"{file}: row 1: expected a heading of {', '.join(COLUMNS)}, found {found}.")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            rows.append(_row(file, reader.line_num, names, cells, seen))
            if len(rows) > IMPORT_ROWS_MAX:
                raise RequestError(f"{file}: more than {IMPORT_ROWS_MAX} rows: split it.")
    except csv.Error as error:
        raise RequestError(f"{file}: row {reader.line_num}: {error}.") from error
    return rows


def _row(file: Path, line: int, names: list[str], cells: list[str], seen: dict[str, int]) -> Row:
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
