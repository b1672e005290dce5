"""All commands together."""

from __future__ import annotations

<<<<<<< HEAD
from gateway.cli import accounts, explain, keys, money, operate, payments, reports
from gateway.cli.groups import app

COMMANDS = (operate, accounts, keys, money, payments, reports, explain)  # importing a module registers its commands
=======
from gateway.cli import accounts, explain, keys, money, operate, reports, subscriptions
from gateway.cli.groups import app

# importing a module registers its commands
COMMANDS = (operate, accounts, keys, money, subscriptions, reports, explain)
>>>>>>> 58cf047 (Plans are changed up at once with a credit and down at the end of what is paid; payments are refunded once)

__all__ = ["COMMANDS", "app"]
