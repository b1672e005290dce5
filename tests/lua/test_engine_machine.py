"""Whatever is called in whatever order, the scripts answer and hold what the oracle says, on three kinds of servers.

Each machine makes a few dozen runs, always the same ones. ``TOLLGATE_EXAMPLES=2000`` looks for new ones.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support import servers
from tests.support.machine import Twin, machine_for

EXAMPLES = int(os.environ.get("TOLLGATE_EXAMPLES", "0"))
SHRINK = bool(os.environ.get("TOLLGATE_SHRINK"))


def explore(twin: Twin, examples: int) -> None:
    """Run the machine; the same runs each time unless more were asked for."""
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            machine_for(twin),
            settings=settings(
                max_examples=EXAMPLES or examples,
                stateful_step_count=40,
                deadline=None,
                derandomize=not EXAMPLES,
                database=None,
                suppress_health_check=list(HealthCheck),
                print_blob=False,
                phases=(Phase.generate, Phase.shrink) if SHRINK else (Phase.generate,),
            ),
        )
    finally:
        twin.close()


def test_the_engine_is_its_oracle_on_valkey(shared_valkey: servers.RedisServer) -> None:
    explore(Twin(shared_valkey.url, can_restart=True, flush=lambda: shared_valkey.command("FLUSHALL")), 60)


def test_the_engine_is_its_oracle_on_redis_7_0(shared_redis7: servers.RedisServer) -> None:
    explore(Twin(shared_redis7.url, can_restart=True, flush=lambda: shared_redis7.command("FLUSHALL")), 40)


def test_the_engine_is_its_oracle_on_a_cluster(shared_cluster: servers.Cluster) -> None:
    explore(Twin(shared_cluster.url, can_restart=False, flush=shared_cluster.flush), 30)


def test_the_engine_is_its_oracle_while_partitions_wait_for_live_holds(shared_valkey: servers.RedisServer) -> None:
    """With a re-assertion wait, an outbox of three entries at most, and no amnesty."""
    twin = Twin(
        shared_valkey.url,
        can_restart=True,
        flush=lambda: shared_valkey.command("FLUSHALL"),
        reassert_wait_ms=1_000,
        outbox_max_entries=3,
        outbox_max_age_ms=90_000,
        amnesty_ms=0,
    )
    explore(twin, 30)
