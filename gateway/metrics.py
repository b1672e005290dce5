"""What happened, as numbers for Prometheus: every family of this program, kept per worker slot, summed at the scrape.

Rules
1. An update is a dictionary look-up and an addition in place: no lock, no object, no system call.
2. Each worker slot owns one memory-mapped file. A worker that dies leaves its counts; its successor goes on with them,
   and starts its own gauges from nothing. A fact about the whole installation stays until somebody looks again.
3. The number of series per family is bounded: what comes after is counted under ``other`` in every label.
4. Label values come from the configuration, never from callers (who passes them in sees to that).

Not here: reading gauges from Redis or SQL at a scrape (``app`` does, and passes them to ``render``).
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import orjson
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

Labels = tuple[str, ...]
OTHER = "other"
SERIES_MAX = 1000  # per family and slot
FILE_BYTES = 8 * 2**20  # sparse: only what is used takes room
HEADER = struct.Struct("<8sQ")  # magic, bytes used
RECORD = struct.Struct("<IHHI")  # bytes of the record, family, bytes of the labels, cells
CELL_BYTES = 8
UNSAID = math.nan

CALL_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
OVERHEAD_S = (
    0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5,
)  # fmt: skip
LAG_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
RATIO = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 5)


class Merge(Enum):
    """How the slots' values of one series become one."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"
    LATEST = "latest"  # a fact about the whole installation: all series of whichever worker looked last, and no other


@dataclass(frozen=True, slots=True)
class Family:
    """One name. A counter has no ``buckets``; a gauge may go down and isn't inherited by a slot's next worker."""

    name: str
    help: str
    labels: Labels
    kind: str  # "counter", "gauge", "histogram"
    merge: Merge = Merge.SUM
    buckets: tuple[float, ...] = ()

    @property
    def cells(self) -> int:
        """Numbers per series: a histogram's buckets, +Inf and sum; a latest gauge's value and time."""
        if self.kind == "histogram":
            return len(self.buckets) + 2
        return 2 if self.merge is Merge.LATEST else 1


class Series:
    """The series of one family in one slot: where each label tuple's numbers stand."""

    def __init__(self, family: Family, number: int, book: Book) -> None:
        self.family = family
        self._number = number
        self._book = book
        self._cells = book.cells
        self._at: dict[Labels, int] = {}

    def _new(self, labels: Labels) -> int:
        """Give the label tuple its place, or that of ``other`` when the family or the file is full."""
        if len(labels) != len(self.family.labels):
            raise ValueError(f"{self.family.name} has labels {self.family.labels}, not {labels!r}")
        other = (OTHER,) * len(labels)
        if len(self._at) >= SERIES_MAX and labels != other:
            return self._at[other] if other in self._at else self._new(other)
        at = self._book.append(self._number, labels, self.family.cells)
        if at is None:
            return self._at.get(other, self._book.nowhere)
        self._at[labels] = at
        return at

    def inherit(self, labels: Labels, at: int) -> None:
        """Go on with the numbers of this slot's last worker; a gauge of its own says nothing until it is set again."""
        self._at[labels] = at
        if self.family.kind == "gauge" and self.family.merge is not Merge.LATEST:
            self._cells[at] = UNSAID

    def begin(self) -> None:
        """Show 0 from the start where there is nothing to label: a rate needs a value before the first event."""
        if not self.family.labels and self.family.merge is Merge.SUM and () not in self._at:
            self._new(())


class Counter(Series):
    def add(self, labels: Labels, amount: float = 1) -> None:
        try:
            at = self._at[labels]
        except KeyError:
            at = self._new(labels)
        self._cells[at] += amount


class Gauge(Series):
    def set(self, labels: Labels, value: float) -> None:
        at = self._at.get(labels)
        if at is None:
            at = self._new(labels)
        self._cells[at] = value
        if self.family.merge is Merge.LATEST:
            self._cells[at + 1] = time.time()

    def replace(self, values: Mapping[Labels, float]) -> None:
        """Exactly these series: what was said of others is taken back."""
        for labels, at in self._at.items():
            if labels not in values:
                self._cells[at] = UNSAID
        for labels, value in values.items():
            self.set(labels, value)

    def add(self, labels: Labels, amount: float) -> None:
        at = self._at.get(labels)
        if at is None:
            at = self._new(labels)
        value = self._cells[at]
        self.set(labels, amount if math.isnan(value) else value + amount)


class Histogram(Series):
    def __init__(self, family: Family, number: int, book: Book) -> None:
        super().__init__(family, number, book)
        self._bounds = family.buckets
        self._sum = len(family.buckets) + 1

    def observe(self, labels: Labels, value: float) -> None:
        try:
            at = self._at[labels]
        except KeyError:
            at = self._new(labels)
        cells = self._cells
        cells[at + bisect_left(self._bounds, value)] += 1
        cells[at + self._sum] += value


class Book:
    """One slot's memory: records of (family, labels, cells), appended, never moved. Read by any worker."""

    def __init__(self, path: Path | None) -> None:
        if path is None:
            self._map = mmap.mmap(-1, FILE_BYTES)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                file.truncate(FILE_BYTES)
                self._map = mmap.mmap(file.fileno(), FILE_BYTES)
        self._view = memoryview(self._map)
        self.cells = self._view.cast("d")
        self.nowhere = (FILE_BYTES // CELL_BYTES) - 64  # the file's end: where updates go that found no room
        magic, used = HEADER.unpack_from(self._map, 0)
        if magic != MAGIC:
            HEADER.pack_into(self._map, 0, MAGIC, HEADER.size)
            used = HEADER.size
        self._used: int = used

    def append(self, family: int, labels: Labels, cells: int) -> int | None:
        """The index of the first of ``cells`` new cells, or None when the file is full."""
        text = orjson.dumps(labels)
        at = _aligned(self._used + RECORD.size + len(text))
        end = at + cells * CELL_BYTES
        if end > self.nowhere * CELL_BYTES:
            return None
        RECORD.pack_into(self._map, self._used, end - self._used, family, len(text), cells)
        self._map[self._used + RECORD.size : end] = text.ljust(end - self._used - RECORD.size, b"\0")
        self._used = end
        HEADER.pack_into(self._map, 0, MAGIC, end)  # last: a reader never sees half a record
        return at // CELL_BYTES

    def content(self) -> bytes:
        return bytes(self._view[: self._used])

    def close(self) -> None:
        self.cells.release()
        self._view.release()
        self._map.close()


def _aligned(offset: int) -> int:
    return (offset + CELL_BYTES - 1) // CELL_BYTES * CELL_BYTES


def _records(content: bytes) -> Iterator[tuple[int, Labels, int, int]]:
    """Each record's family number, labels, and where its cells begin (byte) and how many they are."""
    at = HEADER.size
    while at + RECORD.size <= len(content):
        length, family, text, cells = RECORD.unpack_from(content, at)
        start = at + RECORD.size
        yield family, tuple(orjson.loads(content[start : start + text])), _aligned(start + text), cells
        at += length


class Metrics:
    """Every family as an attribute. ``Metrics(None)`` keeps its numbers in memory only.

    ``folder`` is shared by the installation's workers; ``slot`` is this worker's number.
    """

    def __init__(self, folder: Path | None, slot: int = 0) -> None:
        self._folder = folder
        self._book = Book(None if folder is None else _slot_file(folder, slot))
        self.requests = self._counter("tollgate_requests_total")
        self.denials = self._counter("tollgate_denials_total")
        self.shadow_denials = self._counter("tollgate_shadow_denials_total")
        self.tokens = self._counter("tollgate_tokens_total")
        self.charged_units = self._counter("tollgate_charged_units_total")
        self.overhead = self._histogram("tollgate_overhead_seconds")
        self.upstream_seconds = self._histogram("tollgate_upstream_seconds")
        self.upstream_requests = self._counter("tollgate_upstream_requests_total")
        self.first_byte = self._histogram("tollgate_first_byte_seconds")
        self.streams_open = self._gauge("tollgate_streams_open")
        self.holds_open = self._gauge("tollgate_holds_open")
        self.hold_age = self._gauge("tollgate_hold_age_seconds")
        self.holds_lapsed = self._counter("tollgate_holds_lapsed_total")
        self.overrun_units = self._counter("tollgate_overrun_units_total")
        self.estimate_ratio = self._histogram("tollgate_estimate_ratio")
        self.hold_ratio = self._histogram("tollgate_hold_ratio")
        self.settle_lag = self._histogram("tollgate_settle_lag_seconds")
        self.outbox_entries = self._gauge("tollgate_outbox_entries")
        self.ledger_drift = self._gauge("tollgate_ledger_drift_units")
        self.redis_seconds = self._histogram("tollgate_redis_seconds")
        self.redis_up = self._gauge("tollgate_redis_up")
        self.rebuilds = self._counter("tollgate_rebuilds_total")
        self.upstream_breaker = self._gauge("tollgate_upstream_breaker")
        self.disconnects = self._counter("tollgate_disconnects_total")
        self.accounts = self._gauge("tollgate_accounts")
        self.subscription_changes = self._counter("tollgate_subscription_changes_total")
        self.period_turns = self._counter("tollgate_period_turns_total")
        self.feature_uses = self._counter("tollgate_feature_uses_total")
        self.payments = self._counter("tollgate_payments_total")
        self.alerts = self._counter("tollgate_alerts_total")
        self.alerts_dropped = self._counter("tollgate_alerts_dropped_total")
        self.alert_deliveries = self._counter("tollgate_alert_deliveries_total")
        self.config_reloads = self._counter("tollgate_config_reloads_total")
        self.build_info = self._gauge("tollgate_build_info")
        self._inherit()

    def _counter(self, name: str) -> Counter:
        return Counter(FAMILIES[NUMBERS[name]], NUMBERS[name], self._book)

    def _gauge(self, name: str) -> Gauge:
        return Gauge(FAMILIES[NUMBERS[name]], NUMBERS[name], self._book)

    def _histogram(self, name: str) -> Histogram:
        return Histogram(FAMILIES[NUMBERS[name]], NUMBERS[name], self._book)

    def _inherit(self) -> None:
        series = {each.family.name: each for each in vars(self).values() if isinstance(each, Series)}
        for number, labels, start, _ in _records(self._book.content()):
            series[FAMILIES[number].name].inherit(labels, start // CELL_BYTES)
        for each in series.values():
            each.begin()

    def render(self, at_scrape: Mapping[str, Mapping[Labels, float]] | None = None) -> bytes:
        """All slots' numbers, in Prometheus' text format. ``at_scrape``: as in ``render``."""
        contents = [self._book.content()] if self._folder is None else list(_contents(self._folder))
        return _exposition(contents, at_scrape or {})

    def close(self) -> None:
        """Give the memory back; the file stays."""
        self._book.close()


def _slot_file(folder: Path, slot: int) -> Path:
    return folder / f"slot-{slot}.metrics"


def reset(folder: Path) -> None:
    """Forget the numbers of an earlier run. For the parent, before any worker starts."""
    for path in folder.glob("slot-*.metrics"):
        path.unlink()


def _contents(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.glob("slot-*.metrics")):
        with path.open("rb") as file:
            header = file.read(HEADER.size)
            magic, used = HEADER.unpack(header) if len(header) == HEADER.size else (b"", 0)
            if magic == MAGIC:
                yield header + file.read(used - HEADER.size)


def render(folder: Path, at_scrape: Mapping[str, Mapping[Labels, float]] | None = None) -> bytes:
    """All slots' numbers, in Prometheus' text format.

    ``at_scrape`` gives gauges computed now (family name → labels → value), instead of what slots wrote of that family.
    """
    return _exposition(list(_contents(folder)), at_scrape or {})


class _Merged(Collector):
    """The slots' records merged into one set of series, as prometheus_client wants them."""

    def __init__(self, contents: Iterable[bytes], at_scrape: Mapping[str, Mapping[Labels, float]]) -> None:
        self._series: list[dict[Labels, Sequence[float]]] = [{} for _ in FAMILIES]
        for content in contents:
            facts: dict[int, dict[Labels, Sequence[float]]] = {}
            for number, labels, start, cells in _records(content):
                values = array("d", content[start : start + cells * CELL_BYTES])
                if math.isnan(values[0]):
                    continue
                if FAMILIES[number].merge is Merge.LATEST:
                    facts.setdefault(number, {})[labels] = values
                    continue
                merged = self._series[number]
                before = merged.get(labels)
                merged[labels] = values if before is None else _merge(FAMILIES[number], before, values)
            for number, found in facts.items():
                self._series[number] = max(self._series[number], found, key=_looked_at)
        for name, values_now in at_scrape.items():
            self._series[NUMBERS[name]] = {labels: (value,) for labels, value in values_now.items()}

    def collect(self) -> Iterator[Metric]:
        for family, series in zip(FAMILIES, self._series, strict=True):
            yield _metric(family, series)


def _looked_at(facts: Mapping[Labels, Sequence[float]]) -> float:
    """When a worker last looked at what it says of one family."""
    return max((values[1] for values in facts.values()), default=0.0)


def _merge(family: Family, one: Sequence[float], two: Sequence[float]) -> Sequence[float]:
    match family.merge:
        case Merge.SUM:
            return [a + b for a, b in zip(one, two, strict=True)]
        case Merge.MAX:
            return max(one, two, key=lambda values: values[0])
        case Merge.MIN:
            return min(one, two, key=lambda values: values[0])
        case Merge.LATEST:
            raise AssertionError("a fact is not made of two workers' words")


def _metric(family: Family, series: Mapping[Labels, Sequence[float]]) -> Metric:
    if family.kind == "counter":
        counter = CounterMetricFamily(family.name, family.help, labels=family.labels)
        for labels, values in sorted(series.items()):
            counter.add_metric(labels, values[0])
        return counter
    if family.kind == "gauge":
        gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
        for labels, values in sorted(series.items()):
            gauge.add_metric(labels, values[0])
        return gauge
    histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    for labels, values in sorted(series.items()):
        histogram.add_metric(labels, _buckets(family, values), sum_value=values[-1])
    return histogram


def _buckets(family: Family, values: Sequence[float]) -> list[tuple[str, float]]:
    """Cumulative counts, as Prometheus wants them."""
    buckets, total = [], 0.0
    for bound, value in zip((*map(str, family.buckets), "+Inf"), values, strict=False):
        total += value
        buckets.append((bound, total))
    return buckets


def _exposition(contents: Iterable[bytes], at_scrape: Mapping[str, Mapping[Labels, float]]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(contents, at_scrape))
    return generate_latest(registry)


def _c(name: str, help_text: str, *labels: str) -> Family:
    return Family(name, help_text, labels, "counter")


def _g(name: str, help_text: str, *labels: str, merge: Merge = Merge.SUM) -> Family:
    return Family(name, help_text, labels, "gauge", merge)


def _h(name: str, help_text: str, *labels: str, buckets: tuple[float, ...]) -> Family:
    return Family(name, help_text, labels, "histogram", buckets=buckets)


FAMILIES = (
    _c("tollgate_requests_total", "Answers, refusals included.", "route", "model", "plan", "status"),
    _c("tollgate_denials_total", "Refusals.", "reason", "scope"),
    _c("tollgate_shadow_denials_total", "Calls that a plan in shadow let pass.", "reason", "scope", "plan"),
    _c("tollgate_tokens_total", "Model tokens as settled.", "model", "plan", "kind"),
    _c("tollgate_charged_units_total", "Charged, in units of the meter.", "wallet", "plan", "source", "basis"),
    _h("tollgate_overhead_seconds", "Time spent by Tollgate itself.", "stage", buckets=OVERHEAD_S),
    _h("tollgate_upstream_seconds", "The provider's share of the time.", "upstream", buckets=CALL_S),
    _c("tollgate_upstream_requests_total", "Forwarded calls.", "upstream", "status"),
    _h(
        "tollgate_first_byte_seconds", "From the request's arrival to the answer's first byte.", "model", buckets=CALL_S
    ),
    _g("tollgate_streams_open", "Answers being relayed now."),
    _g("tollgate_holds_open", "Calls in flight with an open hold."),
    _g("tollgate_hold_age_seconds", "Age of the oldest open hold.", merge=Merge.MAX),
    _c("tollgate_holds_lapsed_total", "Leases that ran out.", "outcome"),
    _c("tollgate_overrun_units_total", "Charged above the hold, in units of the meter.", "wallet"),
    _h("tollgate_estimate_ratio", "Actual divided by estimated tokens.", "model", "part", buckets=RATIO),
    _h("tollgate_hold_ratio", "Charged divided by held.", buckets=RATIO),
    _h("tollgate_settle_lag_seconds", "From the answer's end to the charge's row in SQL.", buckets=LAG_S),
    _g("tollgate_outbox_entries", "Charges in Redis that SQL has not confirmed.", merge=Merge.LATEST),
    _g("tollgate_ledger_drift_units", "Difference between Redis and SQL at the last check.", merge=Merge.LATEST),
    _h("tollgate_redis_seconds", "Round trips to Redis.", "script", buckets=OVERHEAD_S),
    _g("tollgate_redis_up", "1 while Redis answers every worker.", merge=Merge.MIN),
    _c("tollgate_rebuilds_total", "Accounts loaded from SQL because Redis did not have them."),
    _g("tollgate_upstream_breaker", "0 closed, 1 half open, 2 open; the worst worker's.", "upstream", merge=Merge.MAX),
    _c("tollgate_disconnects_total", "Clients that hung up, by what the plan then did.", "policy"),
    _g("tollgate_accounts", "Accounts.", "plan", "status", merge=Merge.LATEST),
    _c("tollgate_subscription_changes_total", "Plan changes.", "from", "to", "cause"),
    _c("tollgate_period_turns_total", "Periods that turned.", "plan", "outcome"),
    _c("tollgate_feature_uses_total", "Calls per feature.", "feature", "plan", "outcome"),
    _c("tollgate_payments_total", "Payments.", "kind", "outcome"),
    _c("tollgate_alerts_total", "Alerts raised.", "kind"),
    _c("tollgate_alerts_dropped_total", "Alerts that a full queue dropped.", "kind"),
    _c("tollgate_alert_deliveries_total", "Attempts to deliver alerts.", "channel", "outcome"),
    _c("tollgate_config_reloads_total", "Reloads of the configuration.", "result"),
    _g("tollgate_build_info", "Always 1.", "version", merge=Merge.MAX),
)
NUMBERS = {family.name: number for number, family in enumerate(FAMILIES)}
# Files written with other families are not read.
MAGIC = b"tg" + hashlib.sha256(repr(FAMILIES).encode()).digest()[:6]
