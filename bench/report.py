"""From runs to figures: medians over rounds, what is added over the bare upstream, ratios to the targets."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.load import Seen
from bench.targets import Target

Runs = Mapping[tuple[str, str], Sequence[Seen]]
CLOSED = ("1 KB", "20 KB", "100 KB")
RATES = ("50/s", "200/s")


def summary(
    targets: Sequence[Target],
    runs: Runs,
    idle_pss_kb: Mapping[str, int],
    *,
    streams: int,
    rounds: int,
    skipped: Mapping[str, str],
) -> dict[str, Any]:
    """Everything as plain data: what ``results.json`` holds and the table shows."""
    rows = [_row(target, runs, idle_pss_kb.get(target.name), streams) for target in targets]
    return {
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "commit": _commit(),
        },
        "rounds": rounds,
        "streams": streams,
        "targets": {row.pop("name"): row for row in rows},
        "skipped": dict(skipped),
        "ratios": _ratios({target.name for target in targets}, runs),
    }


def _median(runs: Sequence[Seen], of: Callable[[Seen], float | None]) -> float | None:
    values = [value for run in runs if (value := of(run)) is not None]
    return median(values) if values else None


def _row(target: Target, runs: Runs, idle_kb: int | None, streams: int) -> dict[str, Any]:
    row: dict[str, Any] = {"name": target.name, "note": target.note}
    for shape in CLOSED:
        mine = runs[target.name, shape]
        row[shape] = {
            "requests_per_s": _median(mine, lambda run: run.requests / run.seconds),
            "cpu_us_per_request": _median(mine, lambda run: run.cpu_us_per_event),
        }
    for shape in RATES:
        mine, direct = runs[target.name, shape], runs["direct", shape]
        row[shape] = {
            "p50_ms": _median(mine, lambda run: run.p50_us / 1000),
            "p99_ms": _median(mine, lambda run: run.p99_us / 1000),
            "added_p50_ms": _added(mine, direct, lambda run: run.p50_us),
            "added_p99_ms": _added(mine, direct, lambda run: run.p99_us),
        }
    mine = runs[target.name, "streams"]
    busy_kb = mine[0].pss_kb
    row["streams"] = {
        "chunks_per_s": _median(mine, lambda run: run.chunks / run.seconds),
        "cpu_us_per_chunk": _median(mine, lambda run: run.cpu_us_per_event),
        "delay_p50_ms": _median(mine, lambda run: run.p50_us / 1000),
        "delay_p99_ms": _median(mine, lambda run: run.p99_us / 1000),
        "kb_per_stream": None if idle_kb is None or busy_kb is None else (busy_kb - idle_kb) / streams,
    }
    row["errors"] = sum(run.errors for (name, _), all_runs in runs.items() if name == target.name for run in all_runs)
    return row


def _added(mine: Sequence[Seen], direct: Sequence[Seen], of: Callable[[Seen], int]) -> float | None:
    """The median over rounds of the difference within a round: what both shared cancels out."""
    return _median(mine, of) and median(of(one) - of(bare) for one, bare in zip(mine, direct, strict=True)) / 1000


def _ratios(names: set[str], runs: Runs) -> dict[str, float]:
    """Tollgate against the peer that each target of speed names: the median over rounds of the ratio within a round,
    so that a slow minute of the machine weighs on both sides of it."""
    found: dict[str, float] = {}

    def ratio(key: str, peer: str, shape: str) -> None:
        if {"tollgate", peer} <= names:
            pairs = zip(runs["tollgate", shape], runs[peer, shape], strict=True)
            costs = ((ours.cpu_us_per_event, theirs.cpu_us_per_event) for ours, theirs in pairs)
            within = [ours / theirs for ours, theirs in costs if ours and theirs]
            if within:
                found[key] = median(within)

    for shape in CLOSED:
        ratio(f"CPU per request against nginx + Lua + Redis, {shape}", "nginx + Lua + Redis", shape)
    ratio("CPU per streamed chunk against plain nginx", "nginx", "streams")
    return found


def _figure(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def table(results: Mapping[str, Any]) -> str:
    """Markdown, so that it can be pasted into the README as it is."""
    rows = results["targets"].items()
    parts = [
        _markdown(
            ["", *(f"{shape}: {what}" for shape in CLOSED for what in ("req/s", "CPU µs"))],
            [
                [name, *(_figure(row[s][k]) for s in CLOSED for k in ("requests_per_s", "cpu_us_per_request"))]
                for name, row in rows
            ],
        ),
        _markdown(
            ["added over direct, ms", *(f"{shape}: {what}" for shape in RATES for what in ("p50", "p99"))],
            [
                [name, *(_figure(row[s][k], 2) for s in RATES for k in ("added_p50_ms", "added_p99_ms"))]
                for name, row in rows
            ],
        ),
        _markdown(
            [f"{results['streams']:,} streams", "chunks/s", "CPU µs/chunk", "delay p50 ms", "p99 ms", "KB/stream"],
            [
                [
                    name,
                    _figure(row["streams"]["chunks_per_s"]),
                    _figure(row["streams"]["cpu_us_per_chunk"], 1),
                    _figure(row["streams"]["delay_p50_ms"], 2),
                    _figure(row["streams"]["delay_p99_ms"], 2),
                    _figure(row["streams"]["kb_per_stream"], 1),
                ]
                for name, row in rows
            ],
        ),
    ]
    if "engine" in results:
        parts.append(_engine_table(results["engine"]))
    lines = [f"{name}: {row['note']}" for name, row in rows]
    lines += [f"{name}: {row['errors']} calls failed" for name, row in rows if row["errors"]]
    lines += [f"{name}: {why}" for name, why in results["skipped"].items()]
    lines += [f"{what}: {value:.2f}×" for what, value in results["ratios"].items()]
    machine = results["machine"]
    lines.append(f"{machine['cpu']}, one core each, Python {machine['python']}, medians of {results['rounds']} rounds")
    return "\n\n".join(parts) + "\n\n" + "\n".join(lines)


def _engine_table(engine: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Server time per script, and what an account and an open hold take."""
    kinds = {
        "reserve": "reserve µs",
        "settle": "settle µs",
        "confirm": "confirm µs",
        "account": "account B",
        "hold": "hold B",
    }
    return _markdown(
        ["engine, server time", *kinds.values()],
        [
            [
                f"{server}, {size} account",
                *(_figure(row[kind], 1 if "µs" in head else 0) for kind, head in kinds.items()),
            ]
            for server, sizes in engine.items()
            for size, row in sizes.items()
        ],
    )


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("--:" for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_json(results: Mapping[str, Any]) -> str:
    return json.dumps(_rounded(results), indent=2, ensure_ascii=False) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, Mapping):
        return {key: _rounded(below) for key, below in value.items()}
    return value


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()
