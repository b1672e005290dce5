"""``tollgate serve``, ``check-config``, ``migrate``, ``upstream`` and ``doctor``: what runs an installation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from gateway.cli import groups
from gateway.cli.frame import EX_CONFIG, ConfigOption, DataOption, JsonOption, answer, place_of
from gateway.cli.terminal import Output, listing, record
from gateway.errors import ConfigError, RequestError

CHECKS_SHOWN: Final = "check result found"


@groups.app.command("serve", rich_help_panel=groups.RUNNING)
def serve(
    ctx: typer.Context,
    config: ConfigOption = None,
    data: DataOption = None,
    demo: Annotated[bool, typer.Option("--demo", help="Simulated models, an account per plan, their keys.")] = False,
    listen: Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="Customers' listener.")] = None,
    admin: Annotated[str | None, typer.Option("--admin", metavar="HOST:PORT", help="Operators' listener.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: one per core.")] = None,
) -> int:
    """Serve until SIGTERM or Ctrl-C, then drain."""
    from gateway import serve as server

    place = place_of(ctx, config, data)
    return server.serve(place.config, place.data, demo=demo, listen=listen, admin=admin, workers=workers)


@groups.app.command("check-config", rich_help_panel=groups.RUNNING)
def check_config(
    ctx: typer.Context,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", show_default=False)] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Check a config file as a whole: every problem with its line, exit 78 if there is one."""
    from gateway.config.loading import load
    from gateway.config.model import STRIPE_OFF
    from gateway.installation import locate

    path, _ = locate(file or place_of(ctx, config, None).config, None)
    try:
        loaded = load(path, os.environ)
    except ConfigError as error:
        if not json:
            raise
        return answer(Output({"valid": False, "problems": error.problems}, (), exit_code=EX_CONFIG), as_json=True)
    off = [name for name, upstream in loaded.settings.upstreams.items() if not upstream.on]
    document = {
        "valid": True,
        "problems": [],
        "version": loaded.version,
        "plans": list(loaded.catalog.plans),
        "meters": list(loaded.catalog.meters),
        "upstreams_off": off,
        "stripe_off": loaded.settings.stripe_off,
    }
    notes = [f"off, because no key is set: {', '.join(off)}"] if off else []
    notes += [STRIPE_OFF] if loaded.settings.stripe_off else []
    return answer(Output(document, (f"{path}: valid, version {loaded.version}",), tuple(notes)), as_json=json)


@groups.app.command("migrate", rich_help_panel=groups.RUNNING)
def migrate(ctx: typer.Context, config: ConfigOption = None, data: DataOption = None, json: JsonOption = False) -> int:
    """Bring the database to this release's schema."""
    from gateway.cli.place import migrate_at

    return answer(record(migrate_at(place_of(ctx, config, data))), as_json=json)


@groups.app.command("upstream", rich_help_panel=groups.RUNNING)
def upstream(
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT")] = "127.0.0.1:18081",
) -> int:
    """Run the simulated models alone: every dialect, a journal at /journal."""
    from gateway.config.values import address
    from gateway.simulator.server import run

    try:
        place = address(listen)
    except ValueError as error:
        raise RequestError(f"--listen: {error}", param="--listen") from error
    run(place.host, place.port)
    return 0


@groups.app.command("doctor", rich_help_panel=groups.RUNNING)
def doctor(ctx: typer.Context, config: ConfigOption = None, data: DataOption = None, json: JsonOption = False) -> int:
    """Check the installation: config, Redis, database, upstream keys, clocks."""
    from gateway.cli.doctor import examine, exit_code_of

    findings = examine(place_of(ctx, config, data))
    found = [{"check": each.check, "result": each.result, "found": each.found} for each in findings]
    output = listing(found, CHECKS_SHOWN)
    return answer(Output(output.document, output.lines, exit_code=exit_code_of(findings)), as_json=json)
