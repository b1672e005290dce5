"""What the engine asks of a Redis-protocol store, and ``connect``, which makes one from a URL.

URLs: ``unix:///path?db=0``, ``redis://[user:password@]host:port/db``, ``rediss://…`` (TLS),
``redis+cluster://host:port,host:port``, ``rediss+cluster://…``. TLS options in the query, named as redis-py names them:
``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile`` (paths), ``ssl_cert_reqs`` (required, none), ``ssl_check_hostname``.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from limits.cluster import ClusterClient
from limits.connection import Address, NodeClient, ScriptListener, StateListener, Timing, nobody
from limits.resp import Argument, Script, Spelled
from limits.values import dataclass

__all__ = ["Argument", "Client", "Script", "ServerPolicy", "Timing", "connect", "inspect"]

SCHEMES = ("unix", "redis", "rediss", "redis+cluster", "rediss+cluster")
TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")


class Client(Protocol):
    """A way to run scripts. Nothing is retried silently; raises EngineUnavailable and ScriptRejected only."""

    @property
    def up(self) -> bool:
        """Connected, as far as is known."""

    async def evalsha(
        self,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[Argument] | Spelled,
        *,
        timeout_s: float | None = None,
    ) -> Any:
        """Run a script in one round trip; all commands of one turn of the event loop leave in one write.

        Where the server doesn't know the script yet, it is sent once more, with its source. Bulk strings come as bytes.
        """

    async def execute(self, *args: Argument, key: bytes | None = None, timeout_s: float | None = None) -> Any:
        """One plain command. In a cluster ``key`` says where; without it any master answers."""

    async def close(self) -> None:
        """Close for good; commands that still wait fail."""


def connect(
    url: str,
    *,
    command_timeout_s: float = 0.25,
    timing: Timing | None = None,
    on_state: StateListener | None = None,
    on_script: ScriptListener = nobody,
) -> Client:
    """A client that dials on its first command and reconnects by itself, for one event loop's use.

    ``timing`` replaces every default. ``on_state(address, up, reason)`` is called at each change,
    ``on_script((name,), seconds)`` after each script.
    Raises ValueError for a URL that says nothing sensible; its text never contains the password.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {parts.scheme!r} in a Redis URL: expected one of {', '.join(SCHEMES)}")
    timing = timing or Timing(command_timeout_s=command_timeout_s)
    options = dict(parse_qsl(parts.query))
    if unknown := set(options) - {"db", *TLS_OPTIONS}:
        raise ValueError(f"unknown option in a Redis URL: {', '.join(sorted(unknown))}")
    common = _credentials(parts, options)
    if parts.scheme == "unix":
        if not parts.path:
            raise ValueError("unix:// needs a path")
        return NodeClient(replace(common, path=unquote(parts.path)), timing, on_state, on_script)
    if parts.scheme.startswith("rediss"):
        common = replace(common, tls=_tls(options))
    places = [_place(place) for place in parts.netloc.rpartition("@")[2].split(",")]
    addresses = [replace(common, host=host, port=port) for host, port in places]
    if parts.scheme.endswith("+cluster"):
        if common.db:
            raise ValueError("a Redis Cluster has only database 0")
        return ClusterClient(addresses, timing, on_state, on_script)
    if len(addresses) > 1:
        raise ValueError("several hosts need redis+cluster://")
    return NodeClient(addresses[0], timing, on_state, on_script)


def _credentials(parts: SplitResult, options: dict[str, str]) -> Address:
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    db = options.get("db") or ("" if parts.scheme == "unix" else parts.path.strip("/")) or "0"
    if not db.isdecimal():
        raise ValueError(f"the database in a Redis URL is a number, not {db!r}")
    return Address(username=unquote(user), password=unquote(password), db=int(db))


def _place(text: str) -> tuple[str, int]:
    """``host[:port]`` or ``[v6][:port]``."""
    parts = urlsplit(f"//{text}")
    try:
        return parts.hostname or "localhost", parts.port or 6379
    except ValueError:
        raise ValueError(f"expected host:port in a Redis URL, found {text!r}") from None


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if "ssl_certfile" in options:
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    if options.get("ssl_check_hostname", "true").lower() in ("false", "no", "0"):
        context.check_hostname = False
    if options.get("ssl_cert_reqs", "required") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True, slots=True)
class ServerPolicy:
    """What ``doctor`` wants to know of one server. Unknown values are empty or None."""

    server: str  # "valkey" or "redis"
    version: str
    mode: str  # "standalone", "cluster"
    maxmemory_bytes: int
    maxmemory_policy: str
    appendonly: bool
    role: str

    @property
    def supported(self) -> bool:
        """Redis >= 7.0, or any Valkey."""
        return self.server == "valkey" or int(self.version.partition(".")[0] or 0) >= 7

    @property
    def evicts(self) -> bool:
        """Full memory would silently forget accounts: anything but noeviction."""
        return self.maxmemory_policy not in ("", "noeviction")


async def inspect(client: Client) -> ServerPolicy:
    """Read the server's own account of itself with INFO (CONFIG is often forbidden). Raises EngineUnavailable."""
    reply = await client.execute(b"INFO")
    lines = [line.split(":", 1) for line in bytes(reply).decode("utf-8", "replace").splitlines() if ":" in line]
    info = {name: value.strip() for name, value in lines}
    valkey = "valkey_version" in info
    return ServerPolicy(
        server="valkey" if valkey else "redis",
        version=info.get("valkey_version" if valkey else "redis_version", ""),
        mode=info.get("server_mode", info.get("redis_mode", "")),
        maxmemory_bytes=int(info.get("maxmemory", "0")),
        maxmemory_policy=info.get("maxmemory_policy", ""),
        appendonly=info.get("aof_enabled", "0") == "1",
        role=info.get("role", ""),
    )
