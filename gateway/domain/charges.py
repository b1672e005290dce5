"""The charge of one call: the usage row, as it travels from the worker through Redis' outbox into SQL.

Rules
1. A charge is keyed by its hold's id. It moves none → lapsed → settled, each once; SQL decides, in whatever order they come.
2. ``encode``/``decode`` are exact inverses and versioned: a worker of the next release may find this one's rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.domain.usage import Basis, Usage


@dataclass(frozen=True, slots=True)
class GrantLine:
    wallet: str
    grant: int  # number
    amount: int


@dataclass(frozen=True, slots=True)
class BudgetLine:
    budget: int  # number
    starts_at_ms: int
    amount: int


@dataclass(frozen=True, slots=True)
class ChargeRow:
    """One line of the bill. Amounts in meter steps."""

    hold_id: str
    account_id: str
    state: str  # lapsed | settled
    created_at_ms: int  # when the hold was taken (server time)
    ended_at_ms: int
    route: str  # adapter name, or "metering"
    model: str | None
    upstream: str | None
    plan: str
    feature: str
    wallet: str
    card_version: str  # rates card version, "" for fixed prices
    usage: Usage
    basis: Basis
    held: int
    charged: int  # = sum of lines
    overrun: int  # charged above held
    lines: tuple[GrantLine, ...]
    budgets: tuple[BudgetLine, ...]
    status: int  # HTTP status answered; 0 for lapsed
    end: str  # complete | client_left | upstream_error | quota | lapsed | released
    key_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    job: str | None = None
    job_type: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChargeChange:
    """What SQL made of a charge: the account's next seq, and what it added to each grant and budget (may be negative)."""

    seq: int
    lines: tuple[GrantLine, ...]
    budgets: tuple[BudgetLine, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """All changes of one hold's charge so far, oldest first, and the state that SQL holds now."""

    account_id: str
    hold_id: str
    state: str
    changes: tuple[ChargeChange, ...]
