"""``/admin/v1``: the running installation: its config, its upstreams, what is in flight."""

from __future__ import annotations

from typing import Any, Final, Literal

from gateway.billing.http.admin_accounts import ReasonBody
from gateway.billing.http.answers import Done
from gateway.billing.http.models import NoQuery, Strict, When
from gateway.billing.http.route import Answer, Call, Route, Who
from gateway.billing.views import View, in_flight_view


class ConfigAnswer(Strict):
    """``document`` is the file as it is written, with ``${NAME}`` where it takes something from the environment."""

    version: str
    path: str
    listen: str
    admin: str
    upstreams_off: list[str]
    stripe_off: bool
    document: dict[str, Any]


class ReloadAnswer(Strict):
    """``problems``: why the file was not taken into use."""

    reloaded: bool
    problems: list[str]


class UpstreamAnswer(Strict):
    """``breaker`` is what the worker that answers has seen; each worker finds out for itself."""

    name: str
    dialect: Literal["anthropic", "openai"]
    url: str
    on: bool
    keys: int
    breaker: Literal["closed", "half_open", "open"]


class UpstreamsAnswer(Strict):
    items: list[UpstreamAnswer]


class HoldAnswer(Strict):
    """What an open call keeps for itself."""

    id: str
    started_at: When
    first_byte: bool
    held: dict[str, str]  # wallet → amount


class HoldsAnswer(Strict):
    items: list[HoldAnswer]


async def config(call: Call[NoQuery, None]) -> View:
    return dict(call.frame.operations.config())


async def reload(call: Call[NoQuery, None]) -> Answer:
    problems = await call.frame.operations.reload()
    await call.office.audit.note("reload", detail={"problems": len(problems)})
    return Answer({"reloaded": not problems, "problems": problems}, status=400 if problems else 200)


async def upstreams(call: Call[NoQuery, None]) -> View:
    return {"items": list(call.frame.operations.upstreams())}


async def holds(call: Call[NoQuery, None]) -> View:
    meters = call.office.desk.catalog().meters
    return {"items": [in_flight_view(each, meters) for each in await call.office.holds.list(call.path("account"))]}


async def release(call: Call[NoQuery, ReasonBody]) -> Done:
    await call.office.holds.release(call.path("account"), call.path("hold"), reason=call.body.reason)
    return Done()


_HOLDS: Final = "/admin/v1/accounts/{account}/holds"
ROUTES: Final = (
    Route("GET", "/admin/v1/config", Who.ADMIN, config, ConfigAnswer, "The running config, without secrets."),
    Route("POST", "/admin/v1/reload", Who.ADMIN, reload, ReloadAnswer, "Read the config file again.",
          others={400: ReloadAnswer}),
    Route("GET", "/admin/v1/upstreams", Who.ADMIN, upstreams, UpstreamsAnswer, "The upstreams and their breakers."),
    Route("GET", _HOLDS, Who.ADMIN, holds, HoldsAnswer, "What the account has in flight, the oldest first."),
    Route("POST", f"{_HOLDS}/{{hold}}/release", Who.ADMIN, release, Done, "Give back what a hold keeps, uncharged.",
          body=ReasonBody),
)  # fmt: skip
