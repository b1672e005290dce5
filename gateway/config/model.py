"""A loaded configuration: what the operator runs (settings) and what is for sale (catalog)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from gateway.domain.alerts import Channels
from gateway.domain.plans import Catalog, Model
from gateway.domain.stripe import Access

AMNESTY_MIN_MS = 30_000
SERVED_MAX = 1_000
STRIPE_OFF = "stripe is off, because both its secrets are empty: nothing can be bought"


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    @property
    def loopback(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"  # a name such as 127.0.0.1.example.com may be anywhere


@dataclass(frozen=True, slots=True)
class Upstream:
    name: str
    dialect: Literal["anthropic", "openai"]
    url: str  # no trailing slash
    keys: tuple[str, ...] = field(repr=False)  # non-empty ones only; no key = off
    output_field: str | None = None
    insecure: bool = False

    @property
    def on(self) -> bool:
        return bool(self.keys)


@dataclass(frozen=True, slots=True)
class Settings:
    listen: Address
    admin: Address
    admin_token: str = field(repr=False)
    workers: int  # 0 = one per core
    secret: str = field(repr=False)  # "" = made once in the data folder
    lease_s: float
    connect_s: float
    first_byte_s: float
    idle_s: float
    drain_s: float
    grace_s: float
    body_max_bytes: int
    redis: str = field(repr=False)  # "embedded" or a URL, which may name a password
    database: str = field(repr=False)  # likewise
    upstreams: Mapping[str, Upstream]
    quota_status: int
    public_pricing: bool = False  # plans and packages are told without a key
    stripe: Access | None = None
    stripe_off: bool = False  # written, and off: both its secrets are empty
    channels: Channels = field(default_factory=Channels)  # where alerts go

    @property
    def amnesty_ms(self) -> int:
        """For how long no lease lapses after Redis was away or lost data: the usual lease, but never so short that the
        pause between two rounds of the reaper and its successor looks like an outage."""
        return max(int(self.lease_s * 1000), AMNESTY_MIN_MS)


@dataclass(frozen=True, slots=True)
class Served:
    """A model's name as the routes of one dialect serve it."""

    model: Model
    label: str  # in records and metrics: the name where the config lists it, else its rule
    upstreams: tuple[Upstream, ...]  # that are on and speak the dialect, in order of preference; perhaps none


@dataclass(frozen=True, slots=True)
class Config:
    settings: Settings
    catalog: Catalog
    version: str  # hash of the file's content
    path: Path
    document: Mapping[str, Any] = field(default_factory=dict)  # as the file says it, without secrets
    _served: dict[tuple[str, str], Served] = field(default_factory=dict, init=False, repr=False, compare=False)

    def model(self, name: str) -> Model | None:
        """The rule for a model's name; None also when none of its upstreams is on."""
        model = self.catalog.model(name)
        if model is None or not any(self.settings.upstreams[each].on for each in model.upstreams):
            return None
        return model

    def served(self, name: str, dialect: str) -> Served | None:
        """``model``, and who serves it; remembered, so that a call costs no search."""
        served = self._served.get((name, dialect))
        if served is None:
            model = self.model(name)
            if model is None:
                return None
            upstreams = [self.settings.upstreams[each] for each in model.upstreams]
            speaking = tuple(upstream for upstream in upstreams if upstream.on and upstream.dialect == dialect)
            served = Served(model, name if name in model.ids else model.match, speaking)
            if len(self._served) >= SERVED_MAX:
                self._served.clear()
            self._served[name, dialect] = served
        return served
