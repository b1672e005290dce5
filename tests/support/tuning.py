"""Settings of a running local gateway, changed on the spot: tests need shorter waits than a config may name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gateway.config.model import Upstream
from tests.support.gateways import Local


def tune(gateway: Local, **settings: Any) -> None:
    """Replace settings (``idle_s=0.2``) for the calls that begin from now on."""
    config = gateway.worker.gateway.config
    gateway.worker.gateway.config = replace(config, settings=replace(config.settings, **settings))


def tune_models(gateway: Local, *, of: str | None = None, **changes: Any) -> None:
    """Replace fields of every model rule, or of those whose upstream is called ``of``."""
    config = gateway.worker.gateway.config
    models = tuple(
        replace(model, **changes) if of in (None, model.upstreams[0]) else model for model in config.catalog.models
    )
    gateway.worker.gateway.config = replace(config, catalog=replace(config.catalog, models=models))


def add_upstream(gateway: Local, dialect: str, url: str, *, first: bool = False, name: str = "other") -> None:
    """A further upstream for all models of the dialect, after the one that is there or before it."""
    config = gateway.worker.gateway.config
    upstream = Upstream(name=name, dialect=dialect, url=url, keys=("sk-other-key",))  # type: ignore[arg-type]
    config = replace(config, settings=replace(config.settings, upstreams={**config.settings.upstreams, name: upstream}))
    models = tuple(
        replace(model, upstreams=(name, *model.upstreams) if first else (*model.upstreams, name))
        if config.settings.upstreams[model.upstreams[0]].dialect == dialect
        else model
        for model in config.catalog.models
    )
    gateway.worker.gateway.config = replace(config, catalog=replace(config.catalog, models=models))


def set_upstream(gateway: Local, name: str, **changes: Any) -> None:
    """Replace fields of one upstream (``keys``, ``url``, ``output_field``)."""
    upstreams = gateway.worker.gateway.config.settings.upstreams
    tune(gateway, upstreams={**upstreams, name: replace(upstreams[name], **changes)})
