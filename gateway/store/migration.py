"""Bringing a database to this release's schema, the same way on SQLite and PostgreSQL.

Rules
1. One transaction: a migration that fails leaves the database as it was. Two replicas migrate one after the other.
2. The append-only triggers are taken off before and put back after every migration: rebuilding a table drops them.
3. A database of a newer release is refused, never touched.

Not here: the revisions themselves (``migrations/versions``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from gateway.errors import ConfigError
from gateway.store.database import Database
from gateway.store.schema import APPEND_ONLY

_SCRIPTS: Final = Path(__file__).with_name("migrations")
_LOCK: Final = 0x746F6C6C  # PostgreSQL advisory lock: "toll"
_REFUSE: Final = "tollgate_append_only"


def head() -> str:
    """The revision that this release needs."""
    revision = _scripts().get_current_head()
    assert revision is not None, "there is at least one revision"
    return revision


async def migrate(database: Database) -> None:
    """Bring the database to ``head``. Raises ConfigError when it is newer than this release; StoreUnavailable."""
    async with database.migrating() as connection:
        if database.dialect == "postgresql":
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        await connection.run_sync(_upgrade)


async def check(database: Database) -> None:
    """Raises ConfigError unless the database is exactly at ``head``; StoreUnavailable."""
    async with database.snapshot() as connection:
        current = await connection.run_sync(_current)
    _refuse_newer(current)
    if current != head():
        raise ConfigError([f"database: its schema is {current or 'empty'}, needed is {head()}: run 'tollgate migrate'"])


def _upgrade(connection: Connection) -> None:
    _refuse_newer(_current(connection))
    _drop_triggers(connection)
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    _create_triggers(connection)
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if broken:
            raise ConfigError([f"database: rows of {broken[0][0]} refer to rows that do not exist"])


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(current: str | None) -> None:
    known = {script.revision for script in _scripts().walk_revisions()}
    if current is not None and current not in known:
        raise ConfigError(
            [f"database: its schema {current} is of a newer Tollgate, this one knows up to {head()}: upgrade Tollgate"]
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _drop_triggers(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        for table in APPEND_ONLY:
            for action in ("update", "delete"):
                connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {table}_append_only_{action}")
    else:
        # Dropping the function drops the triggers that call it.
        connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS {_REFUSE}() CASCADE")


def _create_triggers(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        for table in APPEND_ONLY:
            for action in ("update", "delete"):
                connection.exec_driver_sql(
                    f"CREATE TRIGGER {table}_append_only_{action} BEFORE {action} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )
        return
    connection.exec_driver_sql(
        f"CREATE FUNCTION {_REFUSE}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'check_violation'; END $$"
    )
    for table in APPEND_ONLY:
        connection.exec_driver_sql(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {_REFUSE}()"
        )
        # ALWAYS: also in sessions that switch triggers off with session_replication_role.
        connection.exec_driver_sql(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only")
