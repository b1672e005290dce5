"""What the operators' listener needs from the worker that runs it, and nothing else of the program can give."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operator:
    """Made by the wiring."""

    token: Callable[[], str]  # of the running config; "" = the admin API is off
    ready: Callable[[], Awaitable[bool]]
    render_metrics: Callable[[], Awaitable[bytes]]
    reload: Callable[[], Awaitable[list[str]]]  # the problems; empty = taken into use
    config: Callable[[], Mapping[str, object]]  # the running one, without secrets
    upstreams: Callable[[], Sequence[Mapping[str, object]]]  # and how this worker finds them
