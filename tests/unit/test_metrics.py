"""Metrics: what a worker counts survives it, what all workers counted is one page."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway import metrics as module
from gateway.metrics import FAMILIES, SERIES_MAX, Metrics, render, reset

CONTRACT = """
requests_total{route,model,plan,status} denials_total{reason,scope} tokens_total{model,plan,kind}
charged_units_total{wallet,plan,source,basis} overhead_seconds{stage} upstream_seconds{upstream}
upstream_requests_total{upstream,status} first_byte_seconds{model} streams_open holds_open hold_age_seconds
holds_lapsed_total{outcome} overrun_units_total{wallet} estimate_ratio{model,part} hold_ratio settle_lag_seconds
outbox_entries ledger_drift_units redis_seconds{script} redis_up rebuilds_total upstream_breaker{upstream}
disconnects_total{policy} accounts{plan,status} subscription_changes_total{from,to,cause}
period_turns_total{plan,outcome} feature_uses_total{feature,plan,outcome} payments_total{kind,outcome}
alerts_total{kind} config_reloads_total{result} build_info
"""


def page(text: bytes) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def value(text: bytes, sample: str, **labels: str) -> float | None:
    for family in page(text).values():
        for found in family.samples:
            if found.name == sample and found.labels == labels:
                return float(found.value)
    return None


def test_every_family_of_the_contract_exists_with_its_labels() -> None:
    for entry in CONTRACT.split():
        name, _, labels = entry.rstrip("}").partition("{")
        family = next(family for family in FAMILIES if family.name == f"tollgate_{name}")
        if labels:
            assert family.labels == tuple(labels.split(","))


def test_every_family_is_an_attribute_and_on_the_page() -> None:
    made = Metrics(None)
    series = [each for each in vars(made).values() if isinstance(each, module.Series)]
    assert {each.family.name for each in series} == {family.name for family in FAMILIES}
    assert {name.removesuffix("_total") for name in page(made.render())} == {
        family.name.removesuffix("_total") for family in FAMILIES
    }
    made.close()


def test_counts_of_all_slots_are_summed(tmp_path: Path) -> None:
    workers = [Metrics(tmp_path, slot) for slot in range(3)]
    for number, worker in enumerate(workers):
        worker.requests.add(("/v1/messages", "m", "pro", "200"), number + 1)
        worker.streams_open.set((), 5)
        worker.streams_open.add((), -1)
    text = workers[1].render()
    assert text == render(tmp_path)
    assert value(text, "tollgate_requests_total", route="/v1/messages", model="m", plan="pro", status="200") == 6
    assert value(text, "tollgate_streams_open") == 12
    for worker in workers:
        worker.close()


def test_a_histogram_counts_in_cumulative_buckets_and_sums(tmp_path: Path) -> None:
    workers = [Metrics(tmp_path, slot) for slot in range(2)]
    for worker in workers:
        for seconds in (0.0001, 0.00011, 0.3, 99.0):  # a bound is part of its bucket
            worker.overhead.observe(("total",), seconds)
    text = render(tmp_path)

    def upto(bound: str) -> float | None:
        return value(text, "tollgate_overhead_seconds_bucket", stage="total", le=bound)

    assert [upto(bound) for bound in ("0.0001", "0.00025", "0.25", "0.5", "2.5", "+Inf")] == [2, 4, 4, 6, 6, 8]
    assert value(text, "tollgate_overhead_seconds_count", stage="total") == 8
    assert value(text, "tollgate_overhead_seconds_sum", stage="total") == pytest.approx(2 * 99.30021)
    for worker in workers:
        worker.close()


def test_a_killed_workers_counts_stay_and_its_successor_goes_on_with_them(tmp_path: Path) -> None:
    labels = ("limit_exceeded", "account")
    child = os.fork()
    if child == 0:
        dying = Metrics(tmp_path, 0)
        dying.denials.add(labels, 41)
        dying.settle_lag.observe((), 0.5)
        dying.streams_open.set((), 9)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert value(render(tmp_path), "tollgate_denials_total", reason=labels[0], scope=labels[1]) == 41
    successor = Metrics(tmp_path, 0)
    successor.denials.add(labels)
    text = successor.render()
    assert value(text, "tollgate_denials_total", reason=labels[0], scope=labels[1]) == 42
    assert value(text, "tollgate_settle_lag_seconds_count") == 1
    assert value(text, "tollgate_streams_open") is None
    successor.streams_open.add((), 1)
    assert value(successor.render(), "tollgate_streams_open") == 1
    successor.close()


def accounts(text: bytes) -> dict[tuple[str, str], float]:
    samples = page(text)["tollgate_accounts"].samples
    return {(sample.labels["plan"], sample.labels["status"]): sample.value for sample in samples}


def test_a_fact_about_the_installation_is_what_the_latest_writer_says_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1, 100))
    monkeypatch.setattr("gateway.metrics.time.time", lambda: float(next(clock)))
    workers = [Metrics(tmp_path, slot) for slot in range(2)]
    workers[0].accounts.replace({("pro", "active"): 5, ("trial", "trialing"): 1})
    workers[1].accounts.replace({("pro", "active"): 6})
    assert accounts(render(tmp_path)) == {("pro", "active"): 6}
    workers[0].accounts.replace({("trial", "trialing"): 2})
    assert accounts(render(tmp_path)) == {("trial", "trialing"): 2}
    successor = Metrics(tmp_path, 0)
    assert accounts(render(tmp_path)) == {("trial", "trialing"): 2}, "what its worker knew did not die with it"
    for worker in (*workers, successor):
        worker.close()


def test_redis_is_up_only_when_every_worker_says_so(tmp_path: Path) -> None:
    workers = [Metrics(tmp_path, slot) for slot in range(3)]
    workers[0].redis_up.set((), 1)
    assert value(render(tmp_path), "tollgate_redis_up") == 1
    workers[1].redis_up.set((), 0)
    assert value(render(tmp_path), "tollgate_redis_up") == 0
    workers[1].redis_up.set((), 1)
    assert value(render(tmp_path), "tollgate_redis_up") == 1
    for worker in workers:
        worker.close()


def test_gauges_computed_at_the_scrape_replace_what_workers_wrote() -> None:
    made = Metrics(None)
    made.accounts.set(("pro", "active"), 1)
    text = made.render({"tollgate_accounts": {("lite", "active"): 7, ("trial", "suspended"): 2}})
    assert value(text, "tollgate_accounts", plan="lite", status="active") == 7
    assert value(text, "tollgate_accounts", plan="pro", status="active") is None
    made.close()


def test_series_are_bounded_and_the_rest_is_counted_as_other() -> None:
    made = Metrics(None)
    for number in range(SERIES_MAX + 500):
        made.alerts.add((f"kind-{number}",))
    text = made.render()
    assert len(page(text)["tollgate_alerts"].samples) == SERIES_MAX + 1
    assert value(text, "tollgate_alerts_total", kind="other") == 500
    made.close()


def test_a_full_file_loses_no_update_of_known_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 16384)
    made = Metrics(None)
    for number in range(400):
        made.estimate_ratio.observe((f"model-{number}", "input"), 1.0)
    made.estimate_ratio.observe(("model-0", "input"), 1.0)
    assert value(made.render(), "tollgate_estimate_ratio_count", model="model-0", part="input") == 2
    made.close()


def test_labels_of_any_text_survive_the_page() -> None:
    made = Metrics(None)
    odd = 'a"b\\c\nd é 漢'
    made.alerts.add((odd,), 2)
    assert value(made.render(), "tollgate_alerts_total", kind=odd) == 2
    made.close()


def test_a_wrong_number_of_labels_is_a_mistake_of_ours() -> None:
    made = Metrics(None)
    with pytest.raises(ValueError, match="has labels"):
        made.alerts.add(("a", "b"))
    made.close()


def test_files_of_other_families_are_not_read(tmp_path: Path) -> None:
    first = Metrics(tmp_path, 0)
    first.alerts.add(("x",), 5)
    first.close()
    path = next(tmp_path.iterdir())
    with path.open("r+b") as file:
        file.write(b"tgOTHER!")
    assert value(render(tmp_path), "tollgate_alerts_total", kind="x") is None
    second = Metrics(tmp_path, 0)
    second.alerts.add(("x",), 1)
    assert value(second.render(), "tollgate_alerts_total", kind="x") == 1
    second.close()


def test_reset_forgets_an_earlier_run(tmp_path: Path) -> None:
    first = Metrics(tmp_path / "m", 0)
    first.alerts.add(("x",), 5)
    first.close()
    reset(tmp_path / "m")
    assert value(render(tmp_path / "m"), "tollgate_alerts_total", kind="x") is None
