"""One run of the load generator against one target, and what the target's processes did meanwhile."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.processes import OTHER_CORE, Program


@dataclass(frozen=True, slots=True)
class Shape:
    """How to ask. ``rate`` 0 = closed loop; ``streams`` = read streamed answers."""

    name: str
    body: Path
    connections: int
    warm_s: float
    seconds: float
    rate: int = 0
    streams: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What one run showed. ``cpu_s`` and ``pss_kb`` are None for a target without a gateway."""

    requests: int
    chunks: int
    errors: int
    seconds: float
    p50_us: int
    p99_us: int
    cpu_s: float | None
    pss_kb: int | None

    @property
    def events(self) -> int:
        """What the CPU was spent on: chunks of streams, or requests."""
        return self.chunks or self.requests

    @property
    def cpu_us_per_event(self) -> float | None:
        return None if self.cpu_s is None or not self.events else self.cpu_s * 1e6 / self.events


def run(binary: Path, shape: Shape, *, port: int, keys: Path, gateway: Program | None) -> Seen:
    """Raises RuntimeError when the generator fails."""
    command = [
        *("taskset", "-c", str(OTHER_CORE), str(binary), "--port", str(port)),
        *("--body", str(shape.body), "--keys", str(keys), "--connections", str(shape.connections)),
        *("--warm", str(shape.warm_s), "--seconds", str(shape.seconds), "--rate", str(shape.rate)),
        *(("--streams",) if shape.streams else ()),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        cpu_from = cpu_to = None
        pss = None
        report: dict[str, int] = {}
        for line in process.stdout:
            if line == "start\n":
                cpu_from = gateway.cpu_s() if gateway else None
            elif line == "stop\n":
                cpu_to = gateway.cpu_s() if gateway else None
                pss = gateway.pss_kb() if gateway and shape.streams else None
            else:
                report = json.loads(line)
        complaint = process.stderr.read()
    if process.returncode or not report:
        words = gateway.last_words() if gateway else ""
        raise RuntimeError(f"{shape.name}, port {port}: {complaint.strip() or 'nothing was answered'}\n{words}")
    return Seen(
        requests=report["requests"],
        chunks=report["chunks"],
        errors=report["errors"],
        seconds=shape.seconds,
        p50_us=report["p50_us"],
        p99_us=report["p99_us"],
        cpu_s=None if cpu_from is None or cpu_to is None else cpu_to - cpu_from,
        pss_kb=pss,
    )
