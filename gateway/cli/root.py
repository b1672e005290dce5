"""All commands together."""

from __future__ import annotations

from gateway.cli import accounts, explain, keys, money, operate, payments, reports
from gateway.cli.groups import app

COMMANDS = (operate, accounts, keys, money, payments, reports, explain)  # importing a module registers its commands

__all__ = ["COMMANDS", "app"]
