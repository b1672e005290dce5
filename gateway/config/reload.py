"""Keep the running configuration current: the file changed, SIGHUP, or an operator asked.

Rules
1. An invalid file never replaces a running configuration; its problems are told instead.
2. The folder is watched, not the file: a ConfigMap is swapped by its folder's symlink, an editor renames over a file.
3. What cannot change while running keeps its old value, and is told as needing a restart.
4. One reload at a time, in the order in which they were asked for.

Not here: who listens to signals or routes, and what is done with a new configuration (the callback).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from watchfiles import Change, awatch

from gateway.config.build import version_of
from gateway.config.loading import load
from gateway.config.model import Config
from gateway.errors import ConfigError

# What the processes were started with: sockets, processes, connections, and the secret that keys are hashed with.
RESTART_FIELDS: Final = ("listen", "admin", "workers", "secret", "redis", "database", "lease_s", "connect_s", "grace_s")
_KEYS: Final = {
    "redis": "storage.redis",
    "database": "storage.database",
    "lease_s": "server.lease",  # the engine's amnesty was made from it
    "connect_s": "server.connect",
    "grace_s": "server.grace",  # the parent waits as long
}
_QUIET_MS: Final = 200  # writes closer together than this are one change
_LOOK_MS: Final = 2000  # what happened before the watch began, or where nothing is told of changes, is seen by then


@dataclass(frozen=True, slots=True)
class Reloaded:
    """``config`` is in force now; ``needs_restart`` names keys whose new values are not."""

    config: Config
    needs_restart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The file says what is in force already; ``needs_restart`` as above."""

    config: Config
    needs_restart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """The file is not valid: the running configuration stays."""

    problems: tuple[str, ...]


Reload = Reloaded | Unchanged | Rejected


class Watcher:
    """Holds the configuration in force and replaces it by what its file says."""

    def __init__(
        self,
        current: Config,
        env: Mapping[str, str],
        on_reload: Callable[[Reloaded | Rejected], None],
        *,
        adapt: Callable[[Config], Config] = lambda config: config,
    ) -> None:
        """``on_reload`` is called in the loop, after every reload that changed something or was rejected. ``adapt`` is
        what the command line changes in a loaded config (and has changed in ``current`` already)."""
        self.current = current
        self._env = env
        self._on_reload = on_reload
        self._adapt = adapt
        self._turn = asyncio.Lock()
        self._read = current.version  # the file's content when it was last read

    async def reload(self) -> Reload:
        """Read the file and put it in force if it is valid. Reading and checking happen off the loop."""
        async with self._turn:
            outcome = await self._outcome()
            if not isinstance(outcome, Unchanged):
                if isinstance(outcome, Reloaded):
                    self.current = outcome.config
                self._on_reload(outcome)
            return outcome

    async def watch(self, stop: asyncio.Event) -> None:
        """Reload whenever the file changes, until ``stop`` is set."""
        path = self.current.path
        folder = path.parent.absolute()

        def concerns(_: Change, changed: str) -> bool:
            name = Path(changed).name
            return name == path.name or name.startswith("..")  # "..data" is what a ConfigMap swaps

        changes = awatch(
            folder, watch_filter=concerns, debounce=_QUIET_MS, step=50, stop_event=stop, recursive=False,
            rust_timeout=_LOOK_MS, yield_on_timeout=True,
        )  # fmt: skip
        async for told in changes:
            if told or await asyncio.to_thread(self._content) != self._read:
                await self.reload()

    def _content(self) -> str:
        """The version of what the file says now, valid or not."""
        try:
            return version_of(self.current.path.read_bytes())
        except OSError as error:
            return f"unreadable: {error.errno}"

    async def _outcome(self) -> Reload:
        self._read = await asyncio.to_thread(self._content)
        try:
            found = self._adapt(await asyncio.to_thread(load, self.current.path, self._env))
        except ConfigError as error:
            return Rejected(tuple(error.problems))
        running = self.current.settings
        fixed: dict[str, Any] = {name: getattr(running, name) for name in RESTART_FIELDS}
        waiting = tuple(name for name in RESTART_FIELDS if getattr(found.settings, name) != fixed[name])
        needs_restart = tuple(_KEYS.get(name, f"server.{name}") for name in waiting)
        config = replace(found, settings=replace(found.settings, **fixed))
        unchanged = replace(config, version=self.current.version) == self.current
        return (Unchanged if unchanged and not waiting else Reloaded)(config, needs_restart)
