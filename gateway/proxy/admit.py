"""Step 3: may it? Count the input, bound the output, take the hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from gateway.domain.accounts import Caller
from gateway.errors import BadRequest
from gateway.providers import tokens
from gateway.proxy.gateway import Gateway
from gateway.proxy.laps import COUNT, RESERVE, Laps
from gateway.proxy.parse import Asked
from gateway.quota.admission import Admission
from gateway.quota.credentials import account_ref, bind
from gateway.quota.service import Ask, plan_of
from gateway.quota.translate import Work
from limits.values import dataclass


@dataclass(frozen=True, slots=True)
class Bound:
    """What the call is admitted on, in model tokens."""

    input_tokens: int
    output_tokens: int  # per choice
    family: tokens.Family
    input_expected: int | None = None  # about, where the input is bounded by its bytes; None: it was counted

    @property
    def input_counted(self) -> int:
        """0 while nobody has counted it."""
        return self.input_tokens if self.input_expected is None else 0


async def counted(counter: tokens.Counter, asked: Asked) -> Bound:
    """The call's bound, its input counted: off the loop when it is large and new."""
    prompt = asked.call.prompt
    if not asked.adapter.free and counter.needs_thread(prompt, _family(asked)):
        return await asyncio.to_thread(_counted_here, counter, asked)
    return _counted_here(counter, asked)


def _counted_here(counter: tokens.Counter, asked: Asked) -> Bound:
    family = _family(asked)
    if asked.adapter.free:
        return Bound(0, 0, family)
    return Bound(counter.count(asked.call.prompt, family) + _unseen(asked), output_bound(asked), family)


async def _bound_of_large(gateway: Gateway, caller: Caller, asked: Asked) -> Bound:
    """A large input that is next to nothing for its caller even by its bytes is not counted: most answers tell their
    usage, and then its count would serve nobody. Raises SubscriptionInactive, BadRequest."""
    family, unseen = _family(asked), _unseen(asked)
    most, expected = gateway.counter.bound(asked.call.prompt, family)
    rough = Bound(most + unseen, output_bound(asked), family, expected + unseen)
    if await gateway.quota.room.is_ample(caller, plan_of(caller, asked.config.catalog), work_of(asked, rough)):
        return rough
    return await counted(gateway.counter, asked)


def _family(asked: Asked) -> tokens.Family:
    return tokens.family(asked.model.rename or asked.call.model)


def _unseen(asked: Asked) -> int:
    """The provider will add a stored conversation that we cannot see: held as large as an answer can be."""
    return asked.model.output_max if "context_unseen" in asked.call.extra else 0


def work_of(asked: Asked, bound: Bound) -> Work:
    """What the call may cost at most."""
    return Work(
        asked.feature,
        asked.model,
        bound.input_tokens,
        bound.output_tokens * asked.call.choices,
        free=asked.adapter.free,
        input_expected=bound.input_expected,
    )


def output_bound(asked: Asked) -> int:
    """Output tokens per choice: what was asked, at most the model's most, the model's default where nothing was asked.

    Raises BadRequest when the model's most leaves nothing beyond the thinking budget.
    """
    wanted, most = asked.call.output_tokens_asked, asked.model.output_max
    if wanted is None:
        return asked.model.output_default
    if most < wanted and most <= asked.call.output_floor:
        raise BadRequest(
            "invalid_max_tokens",
            f"This model gives at most {most} output tokens, which is not above the thinking budget.",
            param="thinking.budget_tokens",
        )
    return min(wanted, most)


async def admit(
    gateway: Gateway, key: str, caller: Caller, asked: Asked, headers: Mapping[str, str], laps: Laps
) -> tuple[Admission, Bound]:
    """Raises a Refusal, BadRequest, PriceMissing, QuotaUnavailable, Overloaded."""
    if not asked.adapter.free and gateway.counter.is_large(asked.call.prompt):
        bound = await _bound_of_large(gateway, caller, asked)
    else:
        bound = _counted_here(gateway.counter, asked)
    laps.lap(COUNT)

    async def count() -> Work:
        nonlocal bound
        bound = await counted(gateway.counter, asked)
        return work_of(asked, bound)

    async def refresh(stale: Caller) -> Caller:
        again = await gateway.callers.again(key, stale=stale, account_ref=account_ref(headers))
        return await bind(gateway.callers, again, headers)

    ask = ask_of(asked, bound, caller, refresh)
    admission = await gateway.quota.admit(ask if bound.input_expected is None else replace(ask, counted=count))
    laps.lap(RESERVE)
    return admission, bound


def ask_of(asked: Asked, bound: Bound, caller: Caller, refresh: Callable[[Caller], Awaitable[Caller]]) -> Ask:
    """What quota is asked for a parsed call."""
    return Ask(
        caller=caller,
        catalog=asked.config.catalog,
        work=work_of(asked, bound),
        model=asked.call.model,
        facts=asked.facts,
        choices=asked.call.choices,
        output_floor=asked.call.output_floor,
        lease_ms=int(asked.config.settings.lease_s * 1000),
        refresh=refresh,
    )
