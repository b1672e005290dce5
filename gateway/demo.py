"""``--demo``: simulated models instead of providers without a key, one account per plan, and lines to paste."""

from __future__ import annotations

import secrets
from dataclasses import replace

from gateway.config.model import Address, Config
from gateway.domain.plans import CUSTOM, Catalog, Plan
from gateway.errors import Conflict
from gateway.installation import Installation
from gateway.quota.keys import KeyHasher, demo_key, display_prefix
from gateway.store.common import wall_clock_ms
from gateway.store.store import Store

SIMULATED_KEY = "simulated"


def simulated(config: Config, models_url: str) -> Config:
    """The config with simulated models in place of every upstream that has no key."""
    upstreams = {
        name: upstream
        if upstream.on
        else replace(upstream, url=models_url + ("/v1" if upstream.dialect == "openai" else ""), keys=(SIMULATED_KEY,))
        for name, upstream in config.settings.upstreams.items()
    }
    return replace(config, settings=replace(config.settings, upstreams=upstreams))


def with_admin_token(config: Config, token: str) -> Config:
    """The config with an admin token, if it names none."""
    return replace(config, settings=replace(config.settings, admin_token=config.settings.admin_token or token))


def random_admin_token() -> str:
    return secrets.token_urlsafe(24)


async def make_accounts(installation: Installation, store: Store) -> dict[str, str]:
    """One account per plan with one key each: plan → key. Doing it again changes nothing."""
    hasher = KeyHasher(installation.secret)
    keys: dict[str, str] = {}
    for plan in installation.config.catalog.plans.values():
        key = demo_key(installation.secret, plan.name)
        keys[plan.name] = key
        ref = f"demo-{plan.name}"
        account = await store.accounts.by_ref(ref)
        if account is None:
            terms = _terms(installation.config.catalog, plan)
            account = await store.accounts.create(
                f"Demo {plan.label}", now_ms=wall_clock_ms(), plan=plan.name, external_id=ref, terms=terms
            )
        if await store.callers.caller_by_digest(hasher.digest(key)) is None:
            try:
                await store.keys.create(
                    digest=hasher.digest(key),
                    prefix=display_prefix(key),
                    account_id=account.id,
                    name="demo",
                    now_ms=wall_clock_ms(),
                )
            except Conflict:
                keys.pop(plan.name)  # somebody revoked the demo's key: it stays revoked
    return keys


def _terms(catalog: Catalog, plan: Plan) -> dict[str, object]:
    """Something for allowances that are given by contract."""
    custom = {name: 1000 * catalog.meters[name].scale for name, amount in plan.allowance.items() if amount == CUSTOM}
    return ({"allowance": custom} if custom else {}) | ({"price": "0"} if plan.price == CUSTOM else {})


def lines_to_paste(config: Config, keys: dict[str, str]) -> str:
    """What a new user needs: a key per plan, a curl call, both SDKs."""
    url = _url(config.settings.listen)
    plan = "pro" if "pro" in keys else next(iter(keys), "")
    key = keys.get(plan, "tg_...")
    offered = [model.ids[-1] for model in config.catalog.models if model.ids]
    claude = next((name for name in offered if name.startswith("claude")), offered[0] if offered else "MODEL")
    gpt = next((name for name in offered if name.startswith("gpt")), None)
    shown = [f"key: {key} ({plan})" for plan, key in keys.items()]
    shown += [
        "",
        "# curl",
        f"curl {url}/v1/messages -H 'x-api-key: {key}' -H 'anthropic-version: 2023-06-01' \\",
        "  -H 'content-type: application/json' \\",
        f'  -d \'{{"model":"{claude}","max_tokens":100,"messages":[{{"role":"user","content":"Hello"}}]}}\' -i',
        "",
        "# Anthropic's SDK",
        "import anthropic",
        f'client = anthropic.Anthropic(base_url="{url}", api_key="{key}")',
        f'client.messages.create(model="{claude}", max_tokens=100, messages=[{{"role": "user", "content": "Hello"}}])',
    ]
    if gpt is not None:
        shown += [
            "",
            "# OpenAI's SDK",
            "import openai",
            f'client = openai.OpenAI(base_url="{url}/v1", api_key="{key}")',
            f'client.chat.completions.create(model="{gpt}", messages=[{{"role": "user", "content": "Hello"}}])',
        ]
    return "\n".join(shown)


def _url(address: Address) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{address.port}"  # noqa: S104  # shown only
