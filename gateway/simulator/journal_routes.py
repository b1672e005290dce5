"""``/journal``: how tests read what was served.

- ``GET /journal?since=ID&id=ID&tag=T``: a JSON list of entries, oldest first; ``format=lines`` gives JSON lines.
- ``GET /journal?wait=N&wait_ms=MS``: the same once at least N entries match and every matching one has ended, or once
  the time is over.
- ``GET /journal/totals``: sums over everything served; ``DELETE /journal``: forget it.
"""

from __future__ import annotations

import time
from dataclasses import asdict

import orjson
from aiohttp import web

from gateway.simulator.journal import End, Entry, Journal

_WAIT_MS_MAX = 60_000


async def serve_journal(journal: Journal, request: web.BaseRequest) -> web.Response:
    """Any request below ``/journal``."""
    if request.path == "/journal/totals" and request.method == "GET":
        return _json(orjson.dumps({**asdict(journal.totals), "last_id": journal.last_id}))
    if request.path != "/journal":
        return web.Response(status=404, text="no such page\n")
    if request.method == "DELETE":
        journal.clear()
        return web.Response(status=204)
    if request.method != "GET":
        return web.Response(status=405, headers={"Allow": "GET, DELETE"})
    try:
        entries = await _selected(journal, request)
    except ValueError as error:
        return web.Response(status=400, text=f"{error}\n")
    facts = [entry.facts() for entry in entries]
    if request.query.get("format") == "lines":
        return web.Response(
            body=b"".join(orjson.dumps(fact, option=orjson.OPT_APPEND_NEWLINE) for fact in facts),
            content_type="application/x-ndjson",
        )
    return _json(orjson.dumps(facts))


async def _selected(journal: Journal, request: web.BaseRequest) -> list[Entry]:
    query = request.query
    since, wanted, wait_ms = (int(query.get(name, default)) for name, default in _INTEGERS)
    entry_id = int(query["id"]) if "id" in query else None
    deadline = time.monotonic() + min(wait_ms, _WAIT_MS_MAX) / 1000
    while True:
        entries = journal.select(since=since, entry_id=entry_id, tag=query.get("tag"))
        if "wait" not in query or (len(entries) >= wanted and all(entry.end is not End.OPEN for entry in entries)):
            return entries
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not await journal.changed(timeout_s=left_s):
            return entries


_INTEGERS = (("since", "0"), ("wait", "1"), ("wait_ms", "5000"))


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")
