"""All commands together."""

from __future__ import annotations

from gateway.cli import (
    accounts,
    alerts,
    explain,
    exporting,
    keys,
    money,
    operate,
    payments,
    reports,
    stripe,
    subscriptions,
)
from gateway.cli.groups import app

# importing a module registers its commands
COMMANDS = (operate, accounts, keys, money, payments, stripe, subscriptions, reports, explain, exporting, alerts)

__all__ = ["COMMANDS", "app"]
