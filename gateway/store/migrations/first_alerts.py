"""Of the first schema: who is told what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


def create() -> None:
    _alerts()
    _alert_deliveries()
    _use_slices()
    _marks()


def index_trials() -> None:
    """After the subscriptions' table."""
    is_trial = sa.text("ended_at_ms = 0 AND status = 'trialing'")
    op.create_index(
        "ix_subscriptions_trials",
        "subscriptions",
        ["trial_ends_at_ms"],
        unique=False,
        sqlite_where=is_trial,
        postgresql_where=is_trial,
    )


def _alerts() -> None:
    op.create_table(
        "alerts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("account_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("announced_at_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("news_until_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
        sa.UniqueConstraint("account_id", "key", name=op.f("uq_alerts_account_id_key")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_alerts_account_id_id"), "alerts", ["account_id", "id"], unique=False)
    op.create_index(
        "ix_alerts_unannounced",
        "alerts",
        ["id"],
        unique=False,
        sqlite_where=sa.text("announced_at_ms = 0"),
        postgresql_where=sa.text("announced_at_ms = 0"),
    )
    op.create_index(
        "ix_alerts_news_until",
        "alerts",
        ["news_until_ms"],
        unique=False,
        sqlite_where=sa.text("news_until_ms > 0"),
        postgresql_where=sa.text("news_until_ms > 0"),
    )


def _alert_deliveries() -> None:
    op.create_table(
        "alert_deliveries",
        sa.Column("alert_id", sa.BigInteger(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["alert_id"], ["alerts.id"], name=op.f("fk_alert_deliveries_alert_id_alerts")),
        sa.PrimaryKeyConstraint("alert_id", "channel", name=op.f("pk_alert_deliveries")),
    )
    op.create_index(
        "ix_alert_deliveries_due",
        "alert_deliveries",
        ["next_at_ms"],
        unique=False,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )


def _use_slices() -> None:
    op.create_table(
        "use_slices",
        sa.Column("account_id", sa.String(length=36), nullable=False),
        sa.Column("wallet", sa.Text(), nullable=False),
        sa.Column("starts_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("charged", sa.BigInteger(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "wallet", "starts_at_ms", name=op.f("pk_use_slices")),
    )
    op.create_index(op.f("ix_use_slices_starts_at_ms"), "use_slices", ["starts_at_ms"], unique=False)


def _marks() -> None:
    op.create_table(
        "marks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_marks")),
    )
