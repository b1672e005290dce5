"""The product endpoints: ``/api/user/usage`` and ``/api/v1/tokens``, in the words that the apps already speak.

Rules
1. Names, bodies and statuses are the apps' own. Amounts are JSON numbers with exactly the digits of the meter; null
   stands for what is unlimited.
2. A deduction is a use like every other: one function decides, charges and records it (``billing.metering``).

Not here: errors that are no answer of these endpoints, which look as everywhere.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import Field, RootModel, WithJsonSchema

from gateway.billing.http.metering import Metadata, once_of, service_of
from gateway.billing.http.models import Name, NoQuery, Strict, When
from gateway.billing.http.route import Answer, Call, Route, Who, number
from gateway.billing.metering import Asker, Item
from gateway.billing.reports import Balance, WalletBalance
from gateway.billing.views import View, exactly, is_endless_wallet, when
from gateway.domain.plans import Catalog
from gateway.domain.turns import refills_at_ms
from gateway.domain.units import Meter, is_endless, plain
from gateway.edge import refusal_headers, status_of
from gateway.errors import Refusal, UnknownFeature

Number = Annotated[float, WithJsonSchema({"type": "number"})]


class UserUsage(Strict):
    """``credits`` is what is left, ``totalTokens`` what was granted for now."""

    credits: Number | None
    totalTokens: Number | None  # noqa: N815  # as the apps spell it
    availableTokens: Number | None  # noqa: N815
    isSubscribed: bool  # noqa: N815
    subscriptionTier: str  # noqa: N815


class UserUsageAnswer(Strict):
    success: Literal[True]
    data: UserUsage


class CheckBody(Strict):
    """``check`` asks whether a use of the feature could be paid for; ``deduct`` charges it."""

    featureUsed: Name  # noqa: N815
    action: Literal["check", "deduct"]
    userId: Annotated[Name | None, Field(min_length=1)] = None  # noqa: N815
    metadata: Metadata = Field(default_factory=dict)


class Checked(Strict):
    hasTokens: bool  # noqa: N815


class Deducted(Strict):
    success: Literal[True]
    remainingBalance: Number | None  # noqa: N815
    message: str


class CheckAnswer(RootModel[Any]):
    """As the action asked."""

    root: Deducted | Checked


class NotDeducted(Strict):
    """``reason`` is the refusal's code; ``message`` is for people."""

    success: Literal[False]
    remainingBalance: Number | None  # noqa: N815
    message: str
    reason: str


class TokenType(Strict):
    """A wallet: ``balance`` is what is left of what was granted for now."""

    tokenType: str  # noqa: N815
    balance: Number | None
    totalAllocated: Number | None  # noqa: N815
    totalUsed: Number  # noqa: N815
    refreshDate: When | None  # noqa: N815
    lastUsedAt: When | None  # noqa: N815


class StatsAnswer(Strict):
    totalBalance: Number | None  # noqa: N815
    totalAllocated: Number | None  # noqa: N815
    totalUsed: Number  # noqa: N815
    byType: list[TokenType]  # noqa: N815


async def user_usage(call: Call[NoQuery, None]) -> View:
    """Of the wallet whose meter says what a unit is in tokens; else of the default feature's."""
    catalog = call.office.desk.catalog()
    balance = await call.office.reports.balance(call.account.id)
    meter = _credits(catalog)
    wallet = next((each for each in balance.wallets if each.wallet == meter.name), WalletBalance(meter.name, ()))
    subscription = balance.account.subscription
    endless = is_endless_wallet(wallet)
    data = {
        "credits": _left(meter, wallet),
        "totalTokens": None if endless else number(meter.tokens(wallet.granted)),
        "availableTokens": None if endless else number(meter.tokens(max(0, wallet.available))),
        "isSubscribed": subscription.status.usable and subscription.plan != catalog.default_plan,
        "subscriptionTier": subscription.plan,
    }
    return {"success": True, "data": data}


def _credits(catalog: Catalog) -> Meter:
    counted = (meter for meter in catalog.meters.values() if meter.tokens_per_unit is not None)
    return next(counted, catalog.meters[catalog.features[catalog.default_feature].wallet])


def _left(meter: Meter, wallet: WalletBalance) -> orjson.Fragment | None:
    """What a wallet can still pay; null for endlessly much."""
    return None if is_endless_wallet(wallet) else number(meter.format(max(0, wallet.available)))


async def check_balance(call: Call[NoQuery, CheckBody]) -> object:
    assert call.key is not None and call.caller is not None, "only with a key"
    body, service = call.body, service_of(call)
    asker = Asker(call.key, call.caller, body.userId)
    item = Item(feature=body.featureUsed, metadata=body.metadata)
    try:
        used = await service.use(asker, item, dry=body.action == "check", once=once_of(call))
    except UnknownFeature as error:
        raise UnknownFeature(error.message, param="featureUsed") from None
    except Refusal as refusal:
        if body.action == "check":
            return {"hasTokens": False}
        return await _not_deducted(call, refusal)
    if body.action == "check":
        return {"hasTokens": True}
    endless = is_endless(used.remaining)
    return {
        "success": True,
        "remainingBalance": None if endless else number(used.meter.format(max(0, used.remaining))),
        "message": f"Used {used.meter.format(used.cost)} {used.meter.unit} for {used.name}",
    }


async def _not_deducted(call: Call[NoQuery, CheckBody], refusal: Refusal) -> Answer:
    catalog = call.office.desk.catalog()
    meter = catalog.meters[catalog.features[call.body.featureUsed].wallet]
    balance = await call.office.reports.balance(call.account.id)
    left = next((_left(meter, each) for each in balance.wallets if each.wallet == meter.name), number("0"))
    content = {"success": False, "remainingBalance": left, "message": refusal.message, "reason": refusal.code}
    status = status_of(refusal, call.frame.quota_status())
    return Answer(content, status=status, headers=refusal_headers(refusal, request_id=call.id))


async def stats(call: Call[NoQuery, None]) -> View:
    catalog = call.office.desk.catalog()
    return _stats(await call.office.reports.balance(call.account.id), catalog)


def _stats(balance: Balance, catalog: Catalog) -> View:
    refills = when(refills_at_ms(catalog, balance.account.subscription))
    last: dict[str, int] = {}
    for grant in balance.all_grants:
        last[grant.wallet] = max(last.get(grant.wallet, 0), grant.charged_at_ms)
    wallets = [each for each in balance.wallets if each.wallet in catalog.meters]
    meters = {each.wallet: catalog.meters[each.wallet] for each in wallets}
    endless = any(is_endless_wallet(each) for each in wallets)

    def total(amounts: Any) -> orjson.Fragment:
        return number(plain(sum((Fraction(steps, meters[name].scale) for name, steps in amounts), Fraction(0))))

    return {
        "totalBalance": None if endless else total((each.wallet, max(0, each.available)) for each in wallets),
        "totalAllocated": None if endless else total((each.wallet, each.granted) for each in wallets),
        "totalUsed": total((each.wallet, each.used) for each in wallets),
        "byType": [
            {
                "tokenType": each.wallet,
                "balance": _left(meters[each.wallet], each),
                "totalAllocated": None if is_endless_wallet(each) else number(meters[each.wallet].format(each.granted)),
                "totalUsed": number(meters[each.wallet].format(each.used)),
                "refreshDate": refills,
                "lastUsedAt": exactly(last[each.wallet]) if last.get(each.wallet) else None,
            }
            for each in wallets
        ],
    }


ROUTES: Final = (
    Route("GET", "/api/user/usage", Who.KEY, user_usage, UserUsageAnswer,
          "The credits that are left, also in tokens, and the plan."),
    Route("POST", "/api/v1/tokens/check-balance", Who.KEY, check_balance, CheckAnswer,
          "Whether a use of a feature can be paid for, or pay for it.", body=CheckBody,
          others={402: NotDeducted, 403: NotDeducted, 429: NotDeducted}, idempotent=True, compares_rev=True),
    Route("GET", "/api/v1/tokens/stats", Who.KEY, stats, StatsAnswer,
          "What each kind of token has left, was granted and used."),
)  # fmt: skip
