"""The bench's arithmetic: medians, what is added within a round, ratios, and peers that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import bodies, report
from bench.load import Seen
from bench.targets import Target

SHAPES = ("streams", "50/s", "200/s", "1 KB", "20 KB", "100 KB")


def seen(*, p50_us: int = 100, requests: int = 1000, cpu_s: float | None = None, chunks: int = 0) -> Seen:
    return Seen(
        requests=requests,
        chunks=chunks,
        errors=0,
        seconds=2,
        p50_us=p50_us,
        p99_us=p50_us * 2,
        cpu_s=cpu_s,
        pss_kb=50_000 if chunks and cpu_s else None,
    )


def target(name: str) -> Target:
    return Target(name, f"about {name}", 1, Path("keys"), None)


def runs_of(name: str, **given: object) -> dict[tuple[str, str], list[Seen]]:
    return {
        (name, shape): [seen(chunks=500 if shape == "streams" else 0, **given)]  # type: ignore[arg-type]
        for shape in SHAPES
    }


def summary(names: list[str], runs: dict[tuple[str, str], list[Seen]]) -> dict[str, object]:
    idle = {name: 30_000 for name in names if name != "direct"}
    return report.summary(
        [target(name) for name in names], runs, idle, streams=100, rounds=1, skipped={"LiteLLM": "not installed here"}
    )


def test_added_latency_is_the_median_of_differences_within_rounds() -> None:
    """A busy minute that slows direct and gateway alike adds nothing."""
    runs = runs_of("direct") | runs_of("nginx", cpu_s=0.02)
    runs["direct", "200/s"] = [seen(p50_us=100), seen(p50_us=5000), seen(p50_us=100)]
    runs["nginx", "200/s"] = [seen(p50_us=300), seen(p50_us=5200), seen(p50_us=310)]
    row = summary(["direct", "nginx"], runs)["targets"]["nginx"]["200/s"]  # type: ignore[index]
    assert row["added_p50_ms"] == pytest.approx(0.2)
    assert row["p50_ms"] == pytest.approx(0.31)


def test_cpu_is_per_request_and_per_chunk() -> None:
    runs = runs_of("direct") | runs_of("nginx", cpu_s=0.02)
    row = summary(["direct", "nginx"], runs)["targets"]["nginx"]  # type: ignore[index]
    assert row["1 KB"]["cpu_us_per_request"] == pytest.approx(20)
    assert row["1 KB"]["requests_per_s"] == pytest.approx(500)
    assert row["streams"]["cpu_us_per_chunk"] == pytest.approx(40)
    assert row["streams"]["kb_per_stream"] == pytest.approx(200)


def test_ratios_appear_only_when_both_sides_ran() -> None:
    runs = runs_of("direct") | runs_of("nginx", cpu_s=0.02) | runs_of("tollgate", cpu_s=0.05)
    ratios = summary(["direct", "nginx", "tollgate"], runs)["ratios"]
    assert ratios == {"CPU per streamed chunk against plain nginx": pytest.approx(2.5)}


def test_a_missing_peer_is_named_and_never_faked() -> None:
    results = summary(["direct"], runs_of("direct"))
    text = report.table(results)
    assert "LiteLLM: not installed here" in text
    assert "| LiteLLM" not in text
    assert "not installed here" in report.as_json(results)


def test_only_the_last_turn_of_a_prompt_is_new() -> None:
    for body, size in ((bodies.short(), 1_000), (bodies.conversation(), 20_000), (bodies.long(), 100_000)):
        assert body.count(bodies.MARKER.encode()) == 1
        assert abs(len(body) - size) < size * 0.1
    conversation = bodies.conversation()
    assert conversation.rindex(b'"role"') < conversation.index(bodies.MARKER.encode())
