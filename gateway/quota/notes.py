"""A hold's note: the usage row of a call that nobody settled, packed, as it lies in Redis while the call lives.

Rules
1. A note says what is known before the call. What a lapse charges is the engine's to say.
2. What the notes of a caller's like calls share is packed once. That is no other note: the bytes are ``encode``'s.
"""

from __future__ import annotations

from gateway.domain.accounts import Caller
from gateway.domain.charges import LAPSED, ChargeRow, common, completed, encode
from gateway.domain.plans import Plan
from gateway.domain.usage import Basis
from gateway.errors import Refusal
from gateway.quota.admission import Facts
from gateway.quota.translate import Work, price_of_bound

_REMEMBERED_MAX = 16_384


class Notes:
    """Notes of recent callers' calls, but for what is of one call alone. Bounded."""

    def __init__(self) -> None:
        self._shared: dict[tuple[str | None, ...], bytes] = {}

    def of(
        self, caller: Caller, plan: Plan, work: Work, facts: Facts, hold_id: str, now_ms: int, shadowed: Refusal | None
    ) -> bytes:
        account, feature, input_tokens = caller.account, work.feature, work.estimate.input
        assert account is not None, "a hold is an account's"
        is_named = facts.job is not None or facts.job_type is not None or facts.metadata
        if is_named or shadowed is not None or not 0 < input_tokens < 1 << 32:
            return encode(row_of(caller, plan, work, facts, hold_id, now_ms, shadowed))
        card = work.card(feature.wallet)
        key = (
            account.id, caller.key_id, caller.team_id, caller.user_id, facts.route, facts.model, plan.name,
            plan.on_abandon, feature.name, feature.wallet, card.version if card is not None else None,
        )  # fmt: skip
        shared = self._shared.get(key)
        if shared is None:
            if len(self._shared) >= _REMEMBERED_MAX:
                self._shared.clear()
            shared = self._shared[key] = common(row_of(caller, plan, work, facts, hold_id, now_ms))
        return completed(shared, hold_id, now_ms, input_tokens)


def row_of(
    caller: Caller, plan: Plan, work: Work, facts: Facts, hold_id: str, now_ms: int, shadowed: Refusal | None = None
) -> ChargeRow:
    """The usage row of a hold that nobody settled. The amounts are the engine's to fill in."""
    assert caller.account is not None
    card = work.card(work.feature.wallet)
    return ChargeRow(
        hold_id=hold_id,
        account_id=caller.account.id,
        state=LAPSED,
        created_at_ms=now_ms,
        ended_at_ms=now_ms,
        route=facts.route,
        model=facts.model,
        upstream=None,
        plan=plan.name,
        feature=work.feature.name,
        wallet=work.feature.wallet,
        card_version=card.version if card is not None else "",
        usage=work.estimate,
        basis=Basis.HOLD if plan.on_abandon == "hold" else Basis.ESTIMATED,
        held=0,
        charged=0,
        overrun=0,
        lines=(),
        budgets=(),
        status=0,
        end=LAPSED,
        key_id=caller.key_id,
        team_id=caller.team_id,
        user_id=caller.user_id,
        job=facts.job,
        job_type=facts.job_type,
        metadata=facts.metadata,
        shadow=None if shadowed is None else shadowed.code,
        waived=0 if shadowed is None or work.free else price_of_bound(work, work.feature.wallet),
    )
