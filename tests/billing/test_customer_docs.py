"""The examples in docs/customers.md, asked as they stand, in their order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson

from tests.billing.test_tokens import FEATURES, system
from tests.support.gateways import ROOT
from tests.support.stores import Place

BLOCK = re.compile(r"```http\n(.*?)```", re.S)


def same(shown: Any, found: Any) -> bool:
    """``"…"`` stands for anything."""
    if shown == "…":
        return found is not None
    if isinstance(shown, dict):
        return isinstance(found, dict) and shown.keys() == found.keys() and all(same(shown[k], found[k]) for k in shown)
    if isinstance(shown, list):
        return isinstance(found, list) and len(shown) == len(found) and all(map(same, shown, found))
    return bool(shown == found)


async def test_every_example_is_answered_as_it_says(place: Place, valkey_url: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "customers.md").read_text(encoding="utf-8")
    examples = [each for block in BLOCK.findall(text) for each in block.strip().split("\n\n")]
    assert len(examples) >= 5
    async with system(place, valkey_url, tmp_path, FEATURES) as running:
        key = await running.gateway.key("pro")
        for example in examples:
            head, _, rest = example.partition("\n")
            method, path, body = head.split(" ", 2) if head.count(" ") > 1 else (*head.split(" "), "")
            status, _, answer = rest.partition(" ")
            sent = {"json": orjson.loads(body)} if body else {}
            found = await running.call(method, path, key=key, **sent)
            assert found.status == int(status), head
            assert same(orjson.loads(answer), found.json()), f"{head}: {found.body!r}"
            await running.gateway.settled()
