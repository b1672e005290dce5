"""``make bench``: Tollgate beside its peers, in one run, interleaved, each on one core; medians of all rounds.

    python -m bench [--rounds N] [--quick] [--only NAME ...]

Each round asks every target in turn before the next shape of load, so that a busy minute of the machine hits all of
them alike. CPU per request is the figure to trust; requests/s of the fastest targets are bounded by the generator,
which shares the other core with the upstream and Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench import apis, bodies, engine, report
from bench.load import Seen, Shape, run
from bench.processes import GATEWAY_CORE, OTHER_CORE
from bench.targets import HERE, Missing, Target, nginx, nginx_metered, tollgate_shipped, upstream
from tests.support import servers

BINARIES = HERE / "build"
NOT_COMPARED = {
    "LiteLLM": "not part of this run: its row comes with an environment of its own",
    "Portkey": "not part of this run: its row comes with an environment of its own",
}
STREAMS, CHUNKS_PER_S = 1000, 20
RAMP_S = 2  # of the load generator


def build() -> None:
    BINARIES.mkdir(exist_ok=True)
    for name in ("upstream", "load"):
        source, binary = HERE / "native" / f"{name}.c", BINARIES / name
        newest = max(source.stat().st_mtime, (HERE / "native" / "wire.h").stat().st_mtime)
        if not binary.exists() or binary.stat().st_mtime < newest:
            flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
            subprocess.run(["gcc", *flags, "-o", str(binary), str(source)], check=True)


def shapes(folder: Path, *, quick: bool) -> list[Shape]:
    """Streams come first: their memory is measured on processes that have not been under load."""
    streams = 100 if quick else STREAMS
    warm_s, seconds = (0.5, 1.0) if quick else (2.0, 4.0)
    chunks = int((RAMP_S + warm_s + seconds + 1) * CHUNKS_PER_S)
    texts = {
        "streams": bodies.short(chunks=chunks),
        "1 KB": bodies.short(),
        "20 KB": bodies.conversation(),
        "100 KB": bodies.long(),
    }
    files = {name: folder / f"body-{name.replace(' ', '')}.json" for name in texts}
    for name, text in texts.items():
        files[name].write_bytes(text)
    closed_s, closed_warm_s = (0.5, 0.3) if quick else (3.0, 1.0)
    steady_s = 1.0 if quick else 6.0
    return [
        Shape("streams", files["streams"], streams, warm_s, seconds, streams=True),
        *(
            Shape(f"{rate}/s", files["1 KB"], 32, closed_warm_s, steady_s if rate > 50 else steady_s * 1.5, rate=rate)
            for rate in (50, 200)
        ),
        *(Shape(name, files[name], 32, closed_warm_s, closed_s) for name in ("1 KB", "20 KB", "100 KB")),
    ]


def start(stack: ExitStack, folder: Path, only: list[str]) -> tuple[list[Target], dict[str, str]]:
    """The targets that can run here, and a word for each that cannot."""
    direct = stack.enter_context(upstream(folder, BINARIES))
    targets, skipped = [direct], dict(NOT_COMPARED)
    for name, peer in (("nginx", nginx), ("nginx + Lua + Redis", nginx_metered), ("tollgate", tollgate_shipped)):
        if only and name not in only:
            skipped[name] = "not asked for"
            continue
        try:
            targets.append(stack.enter_context(peer(folder, direct.port)))
        except Missing as missing:
            skipped[name] = f"not installed here ({missing})"
    return targets, skipped


def measure(targets: list[Target], load: list[Shape], rounds: int) -> dict[tuple[str, str], list[Seen]]:
    seen: dict[tuple[str, str], list[Seen]] = {}
    for number in range(1, rounds + 1):
        for shape in load:
            for target in targets:
                if sys.stderr.isatty():
                    print(f"\r\033[Kround {number}/{rounds}: {shape.name}, {target.name}", end="", file=sys.stderr)
                one = run(BINARIES / "load", shape, port=target.port, keys=target.keys, gateway=target.gateway)
                seen.setdefault((target.name, shape.name), []).append(one)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return seen


def engine_figures(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Server time of the scripts and memory, per server and size of account."""
    found = {}
    for name, start_server in (("Redis 7.0", servers.redis7), ("Valkey", servers.valkey)):
        with start_server() as server:
            os.sched_setaffinity(server.pid, {GATEWAY_CORE})
            found[name] = asyncio.run(engine.measure(server.url, rounds))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a smoke run: one short round, figures mean nothing")
    parser.add_argument("--only", action="append", default=[], help="a target (repeatable), or api alone")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.only == ["api"]:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            print(apis.table(apis.measure(Path(name), quick=options.quick)))
        return 0
    build()
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # nginx's workers are not root
        targets, skipped = start(stack, folder, options.only)
        idle = {target.name: target.gateway.pss_kb() for target in targets if target.gateway}
        load = shapes(folder, quick=options.quick)
        seen = measure(targets, load, rounds)
        streams = load[0].connections
        api = apis.measure(folder, quick=options.quick)
    results = report.summary(targets, seen, idle, streams=streams, rounds=rounds, skipped=skipped)
    results["engine"] = engine_figures(5 if options.quick else 40)
    results["api"] = api
    print(report.table(results))
    print(f"\n{apis.table(api)}")
    if not options.quick:
        options.output.write_text(report.as_json(results))
        print(f"\nwritten to {options.output.relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    os.sched_setaffinity(0, {OTHER_CORE})
    sys.exit(main())
