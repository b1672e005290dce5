"""A page of metrics, read as Prometheus reads it."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.app import read_at_scrape, read_gauges
from tests.support.gateways import Local


@dataclass(frozen=True, slots=True)
class Page:
    """Families by their name, without ``_total``."""

    text: str
    families: dict[str, Metric]

    @classmethod
    def of(cls, text: str) -> Page:
        return cls(text, {family.name: family for family in text_string_to_metric_families(text)})

    def series(self, name: str) -> dict[tuple[str, ...], float]:
        """A sample's values by its label values, in the order of the labels' names; ``name`` as in PromQL."""
        family = name if name in self.families else name.rpartition("_")[0]
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for sample in self.families[family].samples
            if sample.name == name
        }

    def sum(self, name: str, **labels: str) -> float:
        """All series of a sample that have these labels, summed; 0.0 when there is none."""
        family = name if name in self.families else name.rpartition("_")[0]
        return sum(
            sample.value
            for sample in self.families[family].samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


async def scrape(gateway: Local) -> Page:
    """What ``/metrics`` would say now, gauges read afresh."""
    read_gauges(gateway.worker)
    return Page.of(gateway.worker.metrics.render(await read_at_scrape(gateway.worker)).decode())
