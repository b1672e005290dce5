"""The tables of metering by API: holds that any worker can end, and requests that are done once."""

from __future__ import annotations

from sqlalchemy import Column, Index, LargeBinary, PrimaryKeyConstraint, SmallInteger, Table, text

from gateway.store.columns import id_column as _id
from gateway.store.columns import int_column as _int
from gateway.store.columns import json_column as _json
from gateway.store.columns import metadata
from gateway.store.columns import ref_column as _ref
from gateway.store.columns import text_column as _text

metering_holds = Table(
    "metering_holds",
    metadata,
    _id(primary_key=True),
    _ref("account_id", "accounts.id"),
    _int("version"),  # the hold's: who changes the row knows the one before
    Column("note", LargeBinary, nullable=False),  # its usage row, as it lies in Redis
    _json("hold"),  # what it took from which grant, budget and window
    _json("terms"),  # what is metered, at which price, how much of it so far
    _int("abandon"),  # what its lapse charges, in steps of its wallet
    _int("lease_ends_at_ms"),
    _int("created_at_ms"),
    Index(None, "lease_ends_at_ms"),
)

idempotency = Table(
    "idempotency",
    metadata,
    _text("scope"),  # whose key, on which route
    _text("key"),
    _text("digest"),  # of the body
    Column("status", SmallInteger, nullable=False, server_default=text("0")),  # 0 = still running
    _text("answer", nullable=True),
    _id("owner", nullable=False),  # which request runs it
    _id("seed", nullable=False),  # where all that it makes has its ids from
    _int("started_at_ms"),
    _int("expires_at_ms"),
    PrimaryKeyConstraint("scope", "key"),
    Index(None, "expires_at_ms"),
)
