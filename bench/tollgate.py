"""Tollgate as an operator sets it up: by its command line, as anybody would."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Where:
    """One installation, and the command that runs it."""

    binary: Path
    config: Path
    data: Path
    admin_port: int

    def command(self, *words: str) -> list[str]:
        return [str(self.binary), *words, "--config", str(self.config), "--data", str(self.data)]

    def ask(self, *words: str) -> dict[str, object]:
        """One command with ``--json``. Raises RuntimeError with the command's own words."""
        done = subprocess.run(
            [*self.command(*words), "--json"], capture_output=True, text=True, check=False, env={**os.environ}
        )
        if done.returncode:
            raise RuntimeError(f"tollgate {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        answer: dict[str, object] = json.loads(done.stdout)
        return answer


def create_callers(where: Where, count: int) -> list[str]:
    """Accounts with a team, a user and a key each, and a budget on every scope, so that a reserve has all to check."""
    keys = []
    for number in range(count):
        account = str(where.ask("accounts", "create", f"bench-{number}", "--plan", "bench")["id"])
        team = str(where.ask("teams", "create", account, f"team-{number}")["id"])
        user = str(where.ask("users", "create", account, f"user-{number}", "--team", team)["id"])
        key = where.ask("keys", "create", account, "--team", team, "--user", user)
        for scope, subject in (("team", team), ("user", user), ("key", str(key["id"]))):
            where.ask("budgets", "set", scope, subject, "tokens", "900000000000", "--period", "30d")
        keys.append(str(key["key"]))
    return keys


def check_books(where: Where) -> None:
    """After the load: Redis, ledger and balances agree to the last step. Raises RuntimeError otherwise."""
    where.ask("audit")
