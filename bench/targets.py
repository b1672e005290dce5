"""What is measured side by side: each target is started once, answers on a port, and is stopped at the end."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import redis

from bench import tollgate
from bench.processes import GATEWAY_CORE, OTHER_CORE, Program, answers, free_port, listening

HERE = Path(__file__).parent
NGINX_MODULES = Path("/usr/lib/nginx/modules")
ACCOUNTS = 2


@dataclass(frozen=True, slots=True)
class Target:
    """``gateway`` is None for the upstream itself. ``keys``: one credential per line."""

    name: str
    note: str
    port: int
    keys: Path
    gateway: Program | None


class Missing(Exception):
    """A peer that is not installed here; the message says what it needs."""


@contextlib.contextmanager
def upstream(run: Path, binaries: Path) -> Iterator[Target]:
    """The fake provider, one chunk every 50 ms per stream."""
    port = free_port()
    keys = run / "keys-direct"
    keys.write_text("provider\n")
    program = Program([str(binaries / "upstream"), str(port), "50"], core=OTHER_CORE, log=run / "upstream.log")
    try:
        program.wait_for(lambda: listening(port))
        yield Target("direct", "the upstream itself", port, keys, None)
    finally:
        program.stop()


@contextlib.contextmanager
def nginx(run: Path, upstream_port: int) -> Iterator[Target]:
    """nginx that relays."""
    with _nginx("plain", run, upstream_port, {}) as (port, program):
        keys = run / "keys-plain"
        keys.write_text("anybody\n")
        yield Target("nginx", "no keys, no limits, no counting", port, keys, program)


@contextlib.contextmanager
def nginx_metered(run: Path, upstream_port: int) -> Iterator[Target]:
    """nginx with Lua and a Redis of its own. Raises Missing without nginx's Lua module."""
    if not (NGINX_MODULES / "ngx_http_lua_module.so").exists():
        raise Missing("apt: libnginx-mod-http-lua lua-cjson")
    if not shutil.which("redis-server"):
        raise Missing("apt: redis-server")
    with ExitStack() as stack:
        server = _redis(stack, run)
        accounts = [f"account-{number}" for number in range(ACCOUNTS)]
        for account in accounts:
            server.hset(f"{{{account}}}a", mapping={"granted": 2**50, "posted": 0, "held": 0})
        listed, keys = run / "accounts", run / "keys-metered"
        listed.write_text("".join(f"tg_{name} {name} team-{name} user-{name}\n" for name in accounts))
        keys.write_text("".join(f"tg_{account}\n" for account in accounts))
        names = {
            "REDIS": str(run / "redis" / "s"),
            "KEYS": str(listed),
            "RESERVE_SHA": str(server.script_load((HERE / "nginx" / "reserve.lua").read_text())),
            "SETTLE_SHA": str(server.script_load((HERE / "nginx" / "settle.lua").read_text())),
        }
        port, program = stack.enter_context(_nginx("metered", run, upstream_port, names))
        yield Target("nginx + Lua + Redis", "bytes / 4 for tokens; no SQL", port, keys, program)


@contextlib.contextmanager
def tollgate_shipped(run: Path, upstream_port: int) -> Iterator[Target]:
    """Tollgate with bench/config.yaml, one worker, embedded Valkey on the other core, SQLite."""
    folder = run / "tollgate"
    folder.mkdir()
    port, admin = free_port(), free_port()
    config = (HERE / "config.yaml").read_text()
    for ours, here in ((18104, port), (18105, admin), (18101, upstream_port)):
        config = config.replace(f":{ours}", f":{here}")
    (folder / "config.yaml").write_text(config)
    where = tollgate.Where(Path(sys.executable).with_name("tollgate"), folder / "config.yaml", folder / "data", admin)
    program = Program(where.command("serve"), core=GATEWAY_CORE, log=folder / "log")
    try:
        program.wait_for(lambda: answers(port, "/readyz"), within_s=60)
        program.move_stores(OTHER_CORE)
        keys = run / "keys-tollgate"
        keys.write_text("".join(f"{key}\n" for key in tollgate.create_callers(where, ACCOUNTS)))
        note = "exact counts, all scopes, ledger in SQL, metrics"
        yield Target("tollgate", note, port, keys, program)
        tollgate.check_books(where)
    finally:
        program.stop()


@contextlib.contextmanager
def _nginx(name: str, run: Path, upstream_port: int, names: dict[str, str]) -> Iterator[tuple[int, Program]]:
    """Renders the config files into a folder of its own and starts nginx there. Raises Missing without nginx."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not binary:
        raise Missing("apt: nginx-light")
    folder = run / f"nginx-{name}"
    folder.mkdir()
    (folder / "modules").symlink_to(NGINX_MODULES)
    port = free_port()
    names = {**names, "RUN": str(folder), "HERE": str(folder), "PORT": str(port), "UPSTREAM": str(upstream_port)}
    for source in (HERE / "nginx").iterdir():
        text = source.read_text()
        for key, value in names.items():
            text = text.replace(f"@{key}@", value)
        (folder / source.name).write_text(text)
    command = [binary, "-p", str(folder), "-c", str(folder / f"{name}.conf"), "-e", "stderr"]
    program = Program(command, core=GATEWAY_CORE, log=folder / "log")
    try:
        program.wait_for(lambda: listening(port))
        yield port, program
    finally:
        program.stop()


def _redis(stack: ExitStack, run: Path) -> redis.Redis:
    folder = run / "redis"
    folder.mkdir()
    command = ["redis-server", "--port", "0", "--unixsocket", str(folder / "s"), "--dir", str(folder), "--save", ""]
    command += ["--unixsocketperm", "777", "--appendonly", "yes"]  # nginx's workers are not root
    program = Program(command, core=OTHER_CORE, log=folder / "log")
    stack.callback(program.stop)
    program.wait_for((folder / "s").exists)
    return redis.Redis(unix_socket_path=str(folder / "s"))
