"""Config texts for tests: a small valid file, changed by replacing one piece of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.config.loading import parse
from gateway.config.model import Config
from gateway.errors import ConfigError

BASE = """\
version: 1
server: {listen: 127.0.0.1:8080, admin: 127.0.0.1:9090}
storage: {redis: embedded, database: embedded}
upstreams:
  anthropic: {dialect: anthropic, url: "https://api.anthropic.com", keys: ["${KEY:-}"]}
meters:
  tokens: {decimals: 3}
rates:
  default: {meter: tokens, input: 1, output: 1}
models:
  - {match: "claude-*", ids: [claude-a], upstreams: [anthropic], rates: [default], output_max: 6400, output_default: 99}
features:
  general: {wallet: tokens, price: rates}
default_feature: general
plans:
  trial: {label: Trial, price: 0, period: 7d, renews: never, allowance: {tokens: 6000}}
  pro: {label: Pro, price: 30, period: 30d, allowance: {tokens: 500000}}
default_plan: trial
"""


def edited(*pieces: str) -> str:
    """BASE with pieces replaced: old, new, old, new, …; each old piece must stand in it once."""
    text = BASE
    for old, new in zip(pieces[::2], pieces[1::2], strict=True):
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times"
        text = text.replace(old, new)
    return text


def config(text: str = BASE, env: Mapping[str, str] | None = None, path: Path = Path("config.yaml")) -> Config:
    return parse(text.encode(), path, env or {})


def problems(text: str | bytes, env: Mapping[str, str] | None = None, path: Path = Path("config.yaml")) -> list[str]:
    """The problems of an invalid config, as told."""
    with pytest.raises(ConfigError) as caught:
        parse(text.encode() if isinstance(text, str) else text, path, env or {})
    return caught.value.problems
