"""The tables of who is told what: alerts, how far their delivery got, and what use is compared with."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, PrimaryKeyConstraint, Table, Text, UniqueConstraint, text

from gateway.store.columns import id_column as _id
from gateway.store.columns import int_column as _int
from gateway.store.columns import json_column as _json
from gateway.store.columns import metadata
from gateway.store.columns import serial_column as _serial
from gateway.store.columns import text_column as _text

alerts = Table(
    "alerts",
    metadata,
    _serial(),
    _id("account_id", nullable=False),
    _text("kind"),
    _text("key"),  # what it is about and in which period: once per account
    _json("detail"),
    _int("created_at_ms"),
    _int("announced_at_ms", default=0),  # 0 = not logged, counted and addressed yet
    _int("news_until_ms", default=0),  # 0 = an alert; else news for whoever listens live, and removed afterwards
    UniqueConstraint("account_id", "key"),
    Index(None, "account_id", "id"),
    Index("ix_alerts_unannounced", "id",
          sqlite_where=text("announced_at_ms = 0"), postgresql_where=text("announced_at_ms = 0")),
    Index("ix_alerts_news_until", "news_until_ms",
          sqlite_where=text("news_until_ms > 0"), postgresql_where=text("news_until_ms > 0")),
    sqlite_autoincrement=True,
)  # fmt: skip

alert_deliveries = Table(
    "alert_deliveries",
    metadata,
    Column("alert_id", BigInteger, ForeignKey("alerts.id"), nullable=False),
    _text("channel"),  # webhook | email
    _text("state"),  # pending | sent | failed
    _int("attempts", default=0),
    _int("next_at_ms"),  # of a pending one: when it is tried, or when its sender's claim runs out
    _text("last_error"),
    PrimaryKeyConstraint("alert_id", "channel"),
    Index("ix_alert_deliveries_due", "next_at_ms",
          sqlite_where=text("state = 'pending'"), postgresql_where=text("state = 'pending'")),
)  # fmt: skip

use_slices = Table(
    "use_slices",
    metadata,
    _id("account_id", nullable=False),
    _text("wallet"),
    _int("starts_at_ms"),
    _int("charged"),
    _int("calls"),
    PrimaryKeyConstraint("account_id", "wallet", "starts_at_ms"),
    Index(None, "starts_at_ms"),
)

marks = Table(
    "marks",  # how far somebody read
    metadata,
    Column("name", Text, primary_key=True),
    _int("at_ms"),
)
