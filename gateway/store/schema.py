"""The tables, once for SQLite and PostgreSQL.

Rules
1. Amounts are integers in their meter's smallest step, times Unix milliseconds UTC (``…_at_ms``, 0 = never), ids UUIDv7
   text. An account's grants, budgets and charges have small dense numbers of their own.
2. ``usage``, ``usage_rejects``, ``ledger`` and ``audit_log`` are append-only, kept so by triggers (``migrations``).
3. Secrets are not stored: of a key its HMAC and the first characters.
4. What the hot path appends has no foreign keys: the account's row is locked when its charges are written, and the
   audit finds what would be amiss.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    CheckConstraint,
    Column,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from gateway.store.columns import Json as Json
from gateway.store.columns import id_column as _id
from gateway.store.columns import int_column as _int
from gateway.store.columns import json_column as _json
from gateway.store.columns import metadata as metadata
from gateway.store.columns import ref_column as _ref
from gateway.store.columns import serial_column as _serial
from gateway.store.columns import text_column as _text

APPEND_ONLY: Final = ("usage", "usage_rejects", "ledger", "audit_log")

# --- who -----------------------------------------------------------------------------------------------------------

installation = Table(
    "installation",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    _id("installation_id", nullable=False),
    _int("partitions"),
    _int("created_at_ms"),
    CheckConstraint("id = 1", name="single"),
)

accounts = Table(
    "accounts",
    metadata,
    _id(primary_key=True),
    Column("external_id", Text, unique=True),
    Column("email", Text, index=True),  # in small letters
    _text("name"),
    _text("status"),
    _int("rev", default=1),  # grows with each change that a cached caller must see
    _int("seq", default=0),  # last charge change
    _int("charged_at_ms", default=0),  # of the last charge change
    _int("grants_made", default=0),
    _int("budgets_made", default=0),
    _int("users_seen", default=0),
    _int("created_at_ms"),
)

teams = Table(
    "teams",
    metadata,
    _id(primary_key=True),
    _ref("account_id", "accounts.id"),
    _text("external_id", nullable=True),
    _text("name"),
    _int("created_at_ms"),
    UniqueConstraint("account_id", "external_id"),
    Index(None, "account_id", "id"),
)

users = Table(
    "users",
    metadata,
    _id(primary_key=True),
    _ref("account_id", "accounts.id"),
    _ref("team_id", "teams.id", nullable=True),
    _text("external_id", nullable=True),
    _text("email", nullable=True),
    _text("name"),
    _int("created_at_ms"),
    UniqueConstraint("account_id", "external_id"),
    Index(None, "account_id", "id"),
)

keys = Table(
    "keys",
    metadata,
    _id(primary_key=True),
    _ref("account_id", "accounts.id", nullable=True),  # none: a service key
    _ref("team_id", "teams.id", nullable=True),
    _ref("user_id", "users.id", nullable=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    _text("prefix"),
    _text("name"),
    _int("created_at_ms"),
    _int("expires_at_ms", default=0),
    _int("revoked_at_ms", default=0),
    _id("rotated_to", nullable=True),
    Index(None, "account_id", "id"),
)

# --- what they bought ------------------------------------------------------------------------------------------------

plan_versions = Table(
    "plan_versions",
    metadata,
    _serial(),
    _text("plan"),
    _text("version"),
    _json("content"),
    _int("created_at_ms"),
    UniqueConstraint("plan", "version"),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    _id(primary_key=True),
    _ref("account_id", "accounts.id"),
    _text("plan"),
    _text("plan_version"),
    _text("status"),
    _int("anchor_at_ms"),
    _int("period_starts_at_ms"),
    _int("period_ends_at_ms"),
    _int("granted_until_ms"),  # end of the last period that has its grants: at most one period ahead
    _int("trial_ends_at_ms", default=0),
    Column("cancel_at_period_end", SmallInteger, nullable=False, server_default=text("0")),
    _text("next_plan", nullable=True),  # what follows at the end of what is paid
    _int("paid_until_ms", default=0),  # 0 = nothing was paid for in advance
    _json("terms"),
    _int("created_at_ms"),
    _int("ended_at_ms", default=0),  # 0 = the account's current one
    Index("uq_subscriptions_current", "account_id", unique=True,
          sqlite_where=text("ended_at_ms = 0"), postgresql_where=text("ended_at_ms = 0")),
    Index(None, "account_id", "id"),
    Index("ix_subscriptions_begun_ahead", "period_ends_at_ms",
          sqlite_where=text("ended_at_ms = 0 AND granted_until_ms > period_ends_at_ms"),
          postgresql_where=text("ended_at_ms = 0 AND granted_until_ms > period_ends_at_ms")),
    Index("ix_subscriptions_trials", "trial_ends_at_ms",
          sqlite_where=text("ended_at_ms = 0 AND status = 'trialing'"),
          postgresql_where=text("ended_at_ms = 0 AND status = 'trialing'")),
    Index("ix_subscriptions_granted_until", "granted_until_ms",
          sqlite_where=text("ended_at_ms = 0"), postgresql_where=text("ended_at_ms = 0")),
)  # fmt: skip

grants = Table(
    "grants",
    metadata,
    _ref("account_id", "accounts.id"),
    _int("number"),
    _id(nullable=False),
    _text("wallet"),
    _int("amount"),
    _int("used", default=0),
    _int("written_off", default=0),  # debt forgiven or carried
    _int("billed", default=0),  # of overage: how much of what was used is in a payment that is due
    _text("unit_price", nullable=True),  # of overage: a step's price in the currency's smallest unit, as a fraction
    _int("charged_at_ms", default=0),  # end of the last call that it was charged for
    _text("source"),
    _int("priority"),
    _int("starts_at_ms"),
    _int("expires_at_ms"),
    _text("key", nullable=True),  # what granted it: at most once per account
    _text("reason"),
    _int("created_at_ms"),
    PrimaryKeyConstraint("account_id", "number"),
    UniqueConstraint("id"),
    UniqueConstraint("account_id", "key"),
    CheckConstraint("amount >= 0", name="amount"),
    CheckConstraint("used >= 0", name="used"),
)

renewals = Table(
    "renewals",
    metadata,
    _ref("account_id", "accounts.id"),
    _text("key"),  # of the payment: it counts once
    _id("subscription_id", nullable=False),
    _text("plan"),
    _int("periods"),
    _int("from_ms"),
    _int("until_ms"),
    _int("price"),  # in the currency's smallest unit
    _int("created_at_ms"),
    _int("refunded_at_ms", default=0),
    PrimaryKeyConstraint("account_id", "key"),
)

pushes = Table(
    "pushes",
    metadata,
    _serial(),
    _id("account_id", nullable=False),
    _text("cause"),
    _int("created_at_ms"),
    sqlite_autoincrement=True,
)

budgets = Table(
    "budgets",
    metadata,
    _ref("account_id", "accounts.id"),
    _int("number"),
    _text("scope"),
    _id("scope_id", nullable=False),
    _text("meter"),
    _int("amount"),
    _text("period"),
    _int("anchor_at_ms"),
    _text("time_zone"),
    Column("raises", Json, nullable=False, server_default=text("'[]'")),  # [[amount, until ms], …]: gifts to the user
    _int("created_at_ms"),
    _int("removed_at_ms", default=0),
    PrimaryKeyConstraint("account_id", "number"),
    CheckConstraint("amount >= 0", name="amount"),
)

budget_uses = Table(
    "budget_uses",
    metadata,
    _id("account_id", nullable=False),
    _int("number"),
    _int("starts_at_ms"),
    _int("used", default=0),
    PrimaryKeyConstraint("account_id", "number", "starts_at_ms"),
)

# --- what they paid --------------------------------------------------------------------------------------------------

payments = Table(
    "payments",
    metadata,
    _id(primary_key=True),
    _ref("account_id", "accounts.id"),
    _text("provider"),  # stripe | manual | tollgate (what the gateway itself found to be due)
    Column("provider_ref", Text, unique=True),  # the provider's own id: an invoice, a payment intent
    _text("kind"),  # plan | package | overage | credit
    _text("what"),  # the plan, the package, the wallet
    _int("amount"),  # in the currency's smallest unit
    _int("refunded", default=0),  # of the amount
    Column("currency", String(3), nullable=False),
    _text("state"),  # pending | due | failed | paid | refunded
    Column("livemode", SmallInteger, nullable=False, server_default=text("0")),
    _text("intent", nullable=True),  # the provider's payment intent, by which refunds name a payment
    _text("agreement", nullable=True),  # the provider's subscription that it pays for
    _id("subscription_id", nullable=True),  # ours that it was granted to
    _int("starts_at_ms", default=0),  # the time that it pays for; 0 = none
    _int("ends_at_ms", default=0),
    _int("periods", default=1),
    _int("paid_at_ms", default=0),
    _text("reason"),
    _int("created_at_ms"),
    _int("changed_at_ms"),
    CheckConstraint("amount >= 0", name="amount"),
    CheckConstraint("refunded >= 0", name="refunded"),
    Index(None, "account_id", "id"),
    Index(None, "intent"),
    Index(None, "agreement"),
)

stripe_customers = Table(
    "stripe_customers",
    metadata,
    Column("id", Text, primary_key=True),
    _ref("account_id", "accounts.id"),
    _int("created_at_ms"),
    Index(None, "account_id"),
)

stripe_subscriptions = Table(
    "stripe_subscriptions",
    metadata,
    Column("id", Text, primary_key=True),
    _ref("account_id", "accounts.id"),
    _id("subscription_id", nullable=True),  # ours, once the first payment arrived
    _text("plan"),
    _text("status"),  # Stripe's word
    Column("cancel_at_period_end", SmallInteger, nullable=False, server_default=text("0")),
    _int("seen_at_ms"),  # when Stripe said so: an older word changes nothing
    _int("started_at_ms", default=0),
    _int("ended_at_ms", default=0),  # 0 = it runs
    Index(None, "account_id"),
)

stripe_events = Table(
    "stripe_events",
    metadata,
    Column("id", Text, primary_key=True),
    _id("account_id", nullable=True),
    _text("type"),
    _text("state"),  # done | kept | ignored | failed
    _text("why"),
    _text("waits_for", nullable=True),  # the id whose arrival lets a kept one go on
    _json("facts"),  # what was read of it: no secret, nothing of a card
    Column("livemode", SmallInteger, nullable=False),
    _int("created_at_ms"),  # by Stripe's clock
    _int("received_at_ms"),
    _int("changed_at_ms"),
    Index(None, "state", "created_at_ms", "id"),
    Index(None, "waits_for"),
    Index(None, "created_at_ms", "id"),
)

# --- what they used --------------------------------------------------------------------------------------------------

usage = Table(
    "usage",
    metadata,
    _id("account_id", nullable=False),
    _int("seq"),
    _id("hold_id", nullable=False),
    _text("state"),  # lapsed | reversed | settled
    _int("created_at_ms"),  # when the hold was taken
    _int("at_ms"),  # when it ended
    _int("committed_at_ms"),
    _text("route"),
    _text("model", nullable=True),
    _text("upstream", nullable=True),
    _text("plan"),
    _text("feature"),
    _text("wallet"),
    _text("card_version"),
    _text("basis"),
    _int("input"),
    _int("cache_read"),
    _int("output"),
    _int("held"),
    _int("charged"),
    _int("balance_after"),  # of the wallet's open grants
    _text("lines"),  # JSON [[grant number, amount, left on the grant, its wallet if another], …]
    _text("budgets"),  # JSON [[budget number, period start, amount], …]
    Column("status", SmallInteger, nullable=False),
    _text("end"),
    _id("key_id", nullable=True),
    _id("team_id", nullable=True),
    _id("user_id", nullable=True),
    _int("cache_write_5m", default=0),  # from here on: what most charges say nothing of (usage_rows.SELDOM)
    _int("cache_write_1h", default=0),
    _int("cache_write", default=0),
    _int("reasoning", default=0),
    _int("overrun", default=0),
    _int("waived", default=0),  # what it would have cost, had its plan not been in shadow
    _text("shadow", nullable=True),  # why it would have been refused then
    _text("job", nullable=True),
    _text("job_type", nullable=True),
    Column("metadata", Text, nullable=False, server_default=text("'{}'")),
    PrimaryKeyConstraint("account_id", "seq"),
    UniqueConstraint("hold_id", "state"),
    Index(None, "account_id", "at_ms", "seq"),
    Index(None, "committed_at_ms"),
)

usage_rejects = Table(
    "usage_rejects",
    metadata,
    _serial(),
    _text("hold_id"),
    _text("account_id"),
    _text("state"),
    _text("why"),
    _text("row"),  # the charge as it travelled
    _int("created_at_ms"),
    UniqueConstraint("hold_id", "state"),
)

ledger = Table(
    "ledger",
    metadata,
    _serial(),
    _id("account_id", nullable=False),
    _text("wallet"),
    _int("grant_number"),
    _text("kind"),
    _text("debit"),  # book the amount leaves
    _text("credit"),  # book it goes to
    _int("amount"),
    _int("seq_first", default=0),  # the charge changes that this entry sums up; 0 = none
    _int("seq_last", default=0),
    _text("reason"),
    _int("created_at_ms"),
    CheckConstraint("amount > 0", name="amount"),
    Index(None, "account_id", "id"),
    sqlite_autoincrement=True,
)

audit_log = Table(
    "audit_log",
    metadata,
    _serial(),
    _id("account_id", nullable=True),
    _text("actor"),
    _text("action"),
    _json("detail"),
    _int("created_at_ms"),
    Index(None, "account_id", "id"),
    sqlite_autoincrement=True,
)
