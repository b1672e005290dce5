"""Laws of shapes: what is remembered of a caller's demands is of the config that the call brings."""

from __future__ import annotations

from dataclasses import replace

from gateway.domain.accounts import Account, AccountStatus, Caller, Subscription, SubscriptionStatus
from gateway.domain.plans import Model
from gateway.quota.translate import Shapes, Work
from tests.support.catalogs import card, catalog, plan

BEFORE, AFTER = plan("pro", on_abandon="hold"), plan("pro", on_abandon="release")
ACME = Account(
    "acme", "Acme", None, None, AccountStatus.ACTIVE, 1,
    Subscription("s", "pro", BEFORE.version, SubscriptionStatus.ACTIVE, 0, 0, 0, 0), 0,
)  # fmt: skip
CALLER = Caller("key", ACME, None, None, ())


def test_a_call_that_began_before_a_reload_leaves_nothing_to_those_after_it() -> None:
    """A policy that is no part of what a plan promises leaves its version as it is."""
    old, new = catalog(BEFORE), catalog(AFTER)
    work = Work(new.features["general"], Model("gpt-*", (), ("a",), (card(),), 100, 10), 250, 1_000)
    shapes = Shapes()
    for offered, abandons in ((old, True), (new, False), (old, True), (new, False), (replace(new), False)):
        (wallet,) = shapes.of(CALLER, offered.plans["pro"], offered).demand(work, 0).wallets
        assert bool(wallet.abandon) is abandons
