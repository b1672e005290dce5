"""``tollgate explain``: what would be decided about a call of an account, and why."""

from __future__ import annotations

import asyncio
import json as jsons
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gateway.cli import groups
from gateway.cli.accounts import AccountRef
from gateway.cli.frame import ConfigOption, DataOption, JsonOption, Place, answer, place_of
from gateway.cli.terminal import Output, cell, table
from gateway.errors import NotFound, RequestError

if TYPE_CHECKING:
    from gateway.billing.office import Office
    from gateway.config.model import Config
    from gateway.domain.accounts import Caller

LIMITS_SHOWN: Final = "limit_of scope meter limit used held needed available fits resets_at"


@groups.app.command("explain", rich_help_panel=groups.LOOKING)
def explain(
    ctx: typer.Context,
    account: AccountRef,
    feature: Annotated[str | None, typer.Option("--feature", help="Default: the config's.")] = None,
    model: Annotated[str | None, typer.Option("--model")] = None,
    input_tokens: Annotated[int, typer.Option("--input-tokens", min=0)] = 0,
    output_tokens: Annotated[int | None, typer.Option("--output-tokens", min=0, help="The output bound.")] = None,
    uses: Annotated[int, typer.Option("--uses", min=1, help="Operations in one call.")] = 1,
    request: Annotated[
        Path | None, typer.Option("--request", metavar="FILE", help="The JSON body that the app would send.")
    ] = None,
    route: Annotated[str, typer.Option("--route", help="Where it would send it.")] = "/v1/chat/completions",
    user: Annotated[str | None, typer.Option("--user", help="A user's id or external id.")] = None,
    team: Annotated[str | None, typer.Option("--team", help="A team's id or external id.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="A key's id; its limits and budgets count.")] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> int:
    """Say what would be decided about a call, and why; nothing is taken."""
    document: dict[str, Any] = {"input_tokens": input_tokens, "uses": uses}
    if request is not None:
        document = {"route": route, "body": _read(request)}
    else:
        named = {"model": model, "feature": feature, "output_tokens": output_tokens}
        document |= {name: value for name, value in named.items() if value is not None}
    headers = {} if feature is None else {"Tollgate-Feature": feature}
    view = _explained(place_of(ctx, config, data), document, headers, account=account, user=user, team=team, key=key)
    return answer(Output(view, tuple(_lines(view))), as_json=json)


def _read(path: Path) -> Any:
    try:
        return jsons.loads(path.read_bytes())
    except ValueError as error:
        raise RequestError(f"{path} is not JSON: {error}", param="--request") from error


def _explained(place: Place, document: dict[str, Any], headers: dict[str, str], **names: Any) -> dict[str, Any]:
    from gateway.cli.place import judging, redis_url
    from gateway.installation import open_installation
    from gateway.providers.tokens import Counter
    from gateway.proxy.explain import explain as explained

    installation = open_installation(place.config, place.data)
    config = _as_served(installation.config)

    async def job() -> dict[str, Any]:
        async with judging(installation, url) as (office, quota):

            async def caller(_: object = None) -> Caller:
                return await _caller(office, **names)

            return await explained(
                config, quota, Counter(), document, headers=headers, caller=await caller(), refresh=caller
            )

    with ExitStack() as stack:
        url = redis_url(installation, stack)
        return asyncio.run(job())


def _as_served(config: Config) -> Config:
    """With every upstream on: the providers' keys may stand where the server runs, and not here."""
    upstreams = {
        name: upstream if upstream.on else replace(upstream, keys=("not known here",))
        for name, upstream in config.settings.upstreams.items()
    }
    return replace(config, settings=replace(config.settings, upstreams=upstreams))


async def _caller(office: Office, *, account: str, user: str | None, team: str | None, key: str | None) -> Caller:
    """Whoever would call: the account, as a new key of it or as the key named. Raises NotFound, StoreUnavailable."""
    from uuid_utils import uuid7

    from gateway.domain.accounts import Caller

    found = await office.accounts.get(account)
    budgets = tuple(budget for budget, _ in await office.budgets.list(found.id))
    caller = Caller(str(uuid7()), found, None, None, budgets)
    if key is not None:
        own = await office.keys.get(key)
        if own.account_id not in (None, found.id):
            raise NotFound("This key is another account's.", param="--key")
        caller = replace(caller, key_id=own.id, team_id=own.team_id, user_id=own.user_id)
    if team is not None and caller.team_id is None:
        caller = replace(caller, team_id=(await office.members.team(found.id, team)).id)
    if user is not None and caller.user_id is None:
        caller = replace(caller, user_id=(await office.members.user(found.id, user)).id)
    return caller


def _lines(view: dict[str, Any]) -> list[str]:
    why = f": {view['reason']} ({view['status']})" if view["reason"] else ""
    lines = [view["decision"].replace("_", " ") + why]
    if view["message"]:
        lines.append(view["message"])
    if view["hint"]:
        lines.append(view["hint"])
    account, plan, tokens = view["account"], view["plan"], view["tokens"]
    shadow = ", in shadow" if plan["shadow"] else ""
    lines += ["", f"account  {account['name']} ({account['id']})"]
    lines.append(f"plan     {plan['name']}, {plan['status']}{shadow}, until {cell(plan['period_ends_at'])}")
    lines.append(f"feature  {view['feature']['name']}: {cell(view['feature']['price'])}")
    if view["model"]:
        model = view["model"]
        lines.append(
            f"model    {model['name']} by {model['rule']}, card {cell(model['card'] and model['card']['name'])}"
        )
    counted = "counted" if tokens["counted"] else "as given"
    clamped = f", clamped to {tokens['clamped_to']}" if tokens["clamped_to"] is not None else ""
    lines.append(f"tokens   {tokens['input']} input ({counted}), {tokens['output']} output at most{clamped}")
    lines.append(f"needs    {view['cost']['needed']} of {view['cost']['wallet']}")
    return [*lines, "", *table(view["limits"], LIMITS_SHOWN)]
