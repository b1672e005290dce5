"""Laws of notes: whatever is remembered of other calls, a note is its own row's bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.domain.accounts import Account, AccountStatus, Caller, Subscription, SubscriptionStatus
from gateway.domain.charges import encode
from gateway.domain.plans import Feature, Model, Plan
from gateway.errors import ModelNotInPlan, Refusal
from gateway.quota.admission import Facts
from gateway.quota.notes import Notes, row_of
from gateway.quota.translate import Work
from tests.support.catalogs import card, catalog, plan

HOLD = "01a1f8ad-4417-74f2-89a4-c2f1effb74e0"
PRO = plan("pro")
OFFERED = catalog(PRO)
GENERAL = OFFERED.features[OFFERED.default_feature]
SUBSCRIPTION = Subscription("s", "pro", "v1", SubscriptionStatus.ACTIVE, 0, 0, 0, 0)
ACME = Account("acme", "Acme", None, None, AccountStatus.ACTIVE, 1, SUBSCRIPTION, 0)
CALLER = Caller("key", ACME, None, None, ())
MODEL = Model("gpt-*", (), ("a",), (card(),), 100, 10)
WORK = Work(GENERAL, MODEL, 250, 1000)
FACTS = Facts("openai_chat", "gpt-*")

Call = tuple[Caller, Plan, Work, Facts, Refusal | None]
CALLS: dict[str, Call] = {
    "a call": (CALLER, PRO, WORK, FACTS, None),
    "another size": (CALLER, PRO, replace(WORK, input_tokens=3, output_tokens=4), FACTS, None),
    "a rough bound": (CALLER, PRO, replace(WORK, input_tokens=1000, input_expected=250), FACTS, None),
    "nothing counted": (CALLER, PRO, replace(WORK, input_tokens=0), FACTS, None),
    "a size beyond all bounds": (CALLER, PRO, replace(WORK, input_tokens=2**32), FACTS, None),
    "no model": (CALLER, PRO, replace(WORK, model=None), replace(FACTS, model=None), None),
    "another card": (CALLER, PRO, replace(WORK, model=replace(MODEL, rates=(card(version="2"),))), FACTS, None),
    "another model": (CALLER, PRO, WORK, replace(FACTS, model="gpt-5"), None),
    "another route": (CALLER, PRO, WORK, replace(FACTS, route="anthropic"), None),
    "another wallet": (CALLER, PRO, replace(WORK, feature=Feature("general", "usd", GENERAL.price)), FACTS, None),
    "another feature": (CALLER, PRO, replace(WORK, feature=Feature("leads", "tokens", GENERAL.price)), FACTS, None),
    "another plan": (CALLER, replace(PRO, name="team"), WORK, FACTS, None),
    "another policy": (CALLER, replace(PRO, on_abandon="hold"), WORK, FACTS, None),
    "another account": (replace(CALLER, account=replace(ACME, id="b")), PRO, WORK, FACTS, None),
    "another key": (replace(CALLER, key_id="k2"), PRO, WORK, FACTS, None),
    "a team": (replace(CALLER, team_id="t"), PRO, WORK, FACTS, None),
    "a user": (replace(CALLER, user_id="t"), PRO, WORK, FACTS, None),
    "a job": (CALLER, PRO, WORK, replace(FACTS, job="nightly"), None),
    "a job without a name": (CALLER, PRO, WORK, replace(FACTS, job=""), None),
    "a job's type": (CALLER, PRO, WORK, replace(FACTS, job_type="batch"), None),
    "metadata": (CALLER, PRO, WORK, replace(FACTS, metadata={"a": 1}), None),
    "what shadow let pass": (CALLER, PRO, WORK, FACTS, ModelNotInPlan("No.")),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_note_is_its_rows_bytes_whatever_came_before(call: str) -> None:
    notes = Notes()
    for name in (*CALLS, call):
        caller, of_plan, work, facts, shadowed = CALLS[name]
        row = row_of(caller, of_plan, work, facts, HOLD, 1_700_000_000_000, shadowed)
        note = notes.of(caller, of_plan, work, facts, HOLD, 1_700_000_000_000, shadowed)
        assert note == encode(row), name
