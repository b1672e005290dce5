"""How a hold grows: what is asked for on top, slot by slot as the hold has them, and the sum. Pure."""

from __future__ import annotations

from dataclasses import replace

from limits.model import Demand


def aligned(whole: Demand, more: Demand) -> Demand:
    """``more`` with exactly the slots of ``whole``, in its order: amounts of 0 where it asks for nothing.

    Limits are those of ``more`` where it names the slot. A budget stays in its hold's period.
    Raises ValueError if ``more`` names a slot that the hold does not have.
    """
    wallets = {item.wallet: item for item in more.wallets}
    budgets = {item.number: item for item in more.budgets}
    windows = {(item.scope, item.name, item.length_ms): item for item in more.windows}
    top = Demand(
        wallets=tuple(
            wallets.pop(item.wallet, replace(item, amount=0, minimum=0, abandon=0)) for item in whole.wallets
        ),
        budgets=tuple(
            replace(budgets.pop(item.number, replace(item, amount=0, abandon=0)), starts_at_ms=item.starts_at_ms)
            for item in whole.budgets
        ),
        windows=tuple(
            windows.pop((item.scope, item.name, item.length_ms), replace(item, amount=0)) for item in whole.windows
        ),
        concurrency=whole.concurrency,
    )
    if wallets or budgets or windows:
        raise ValueError("a hold grows in the slots that it has")
    return top


def summed(whole: Demand, top: Demand) -> Demand:
    """The hold's demand after it grew by an aligned demand."""
    return Demand(
        wallets=tuple(
            replace(item, amount=item.amount + more.amount, abandon=item.abandon + more.abandon)
            for item, more in zip(whole.wallets, top.wallets, strict=True)
        ),
        budgets=tuple(
            replace(item, amount=item.amount + more.amount, abandon=item.abandon + more.abandon, limit=more.limit)
            for item, more in zip(whole.budgets, top.budgets, strict=True)
        ),
        windows=tuple(
            replace(item, amount=item.amount + more.amount, limit=more.limit)
            for item, more in zip(whole.windows, top.windows, strict=True)
        ),
        concurrency=whole.concurrency,
    )
