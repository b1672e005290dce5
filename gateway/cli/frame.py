"""How a command runs: its installation opened, its coroutine run, its answer printed, its errors told in a line.

Rules
1. Nothing heavy is imported before a command needs it: ``--help`` and a usage error are answered at once.
2. Every error is one line per problem on stderr, never a traceback: 2 usage, 69 a service is away, 78 configuration,
   130 Ctrl-C, 70 a bug of ours.
3. What a command needs of Redis is opened before it writes anything: whoever has to wait for the data folder's lock in
   vain has done nothing.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, ParamSpec

import typer
from typer.exceptions import TyperException

from gateway.cli.terminal import Output, emit, say, silence
from gateway.errors import ConfigError, QuotaUnavailable, RequestError, ServiceAway, TollgateError

if TYPE_CHECKING:
    from gateway.billing.office import Office

P = ParamSpec("P")
Answers = Callable[Concatenate["Office", P], Awaitable[Output]]  # a command: what it needs, what was typed

EX_FAILED: Final = 1
EX_USAGE: Final = 2
EX_UNAVAILABLE: Final = 69
EX_SOFTWARE: Final = 70
EX_CONFIG: Final = 78
EX_INTERRUPTED: Final = 128 + signal.SIGINT
EX_PIPE: Final = 128 + signal.SIGPIPE
DEBUG_VARIABLE: Final = "TOLLGATE_DEBUG"

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="The config file (or TOLLGATE_CONFIG).", metavar="FILE", show_default=False),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="The data folder (or TOLLGATE_DATA).", metavar="DIR", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Reach(Enum):
    """What of the installation a command opens before it starts."""

    SQL = "sql"
    DELIVERY = "delivery"  # SQL; and Redis, if it answers, to tell it what changed
    REDIS = "redis"  # both, or exit 69


@dataclass(frozen=True, slots=True)
class Place:
    """Where the installation is, as said on the command line; None: by the environment, else the usual names."""

    config: Path | None
    data: Path | None


def place_of(ctx: typer.Context, config: Path | None, data: Path | None) -> Place:
    """``--config`` and ``--data`` may stand before or after the command; the nearer one counts."""
    before = ctx.find_root().obj
    outer = before if isinstance(before, Place) else Place(None, None)
    return Place(config or outer.config, data or outer.data)


def command(
    group: typer.Typer, name: str, reach: Reach = Reach.SQL, **options: Any
) -> Callable[[Answers[P]], Answers[P]]:
    """Register a coroutine function as a command: it gets the opened installation first, then what was typed, and
    ``--config``, ``--data`` and ``--json`` are added to what it declares."""

    def register(function: Answers[P]) -> Answers[P]:
        declared = inspect.signature(function, eval_str=True, locals={"Office": object})
        own = list(declared.parameters.values())[1:]

        def run(*, ctx: typer.Context, config: Path | None, data: Path | None, json: bool, **arguments: Any) -> int:
            from gateway.cli.place import run_at

            output = run_at(place_of(ctx, config, data), reach, lambda office: function(office, **arguments))  # type: ignore[call-arg]
            return answer(output, as_json=json)

        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                _keyword("ctx", typer.Context, inspect.Parameter.empty),
                *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own),
                _keyword("config", ConfigOption, None),
                _keyword("data", DataOption, None),
                _keyword("json", JsonOption, False),
            ]
        )
        run.__annotations__ = {}
        group.command(name, **options)(run)
        return function

    return register


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def answer(output: Output, *, as_json: bool) -> int:
    """Print, and say with which code to exit."""
    try:
        emit(output, as_json=as_json)
    except BrokenPipeError:
        silence(sys.stdout.fileno())
        return EX_PIPE
    return output.exit_code


def execute(app: typer.Typer, arguments: Sequence[str], *, program: str = "tollgate") -> int:
    """Run one command line to its exit code; nothing is raised."""
    try:
        result = typer.main.get_command(app).main(list(arguments), prog_name=program, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except TyperException as error:
        return _usage(error, program)
    except typer.Abort:
        return EX_INTERRUPTED
    except BrokenPipeError:
        silence(sys.stdout.fileno())
        return EX_PIPE
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    except Exception as error:  # the outermost edge: whatever it is, it is told in a line
        return _failed(error)


def _usage(error: TyperException, program: str) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        say(error.format_message())
    else:
        path = context.command_path if context is not None else program
        say(f"{program}: {error.format_message()} (see {path} --help)")
    return error.exit_code


def _failed(error: Exception) -> int:
    """Each kind of error as its lines and its exit code."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    known = mapped(error)
    if isinstance(known, ConfigError):
        for problem in known.problems:
            say(problem)
        return EX_CONFIG
    if isinstance(known, TollgateError):
        say(f"tollgate: {_one_line(known.message)}")
        return EX_UNAVAILABLE if isinstance(known, QuotaUnavailable | ServiceAway) else EX_USAGE
    say(f"tollgate: this is a bug: {_one_line(f'{type(known).__name__}: {known}')} ({DEBUG_VARIABLE}=1 shows where)")
    return EX_SOFTWARE


def mapped(error: Exception) -> Exception:
    """The engine's and the system's words in ours."""
    from limits.errors import EngineUnavailable

    if isinstance(error, EngineUnavailable):
        return ServiceAway(f"Redis does not answer: {error}")
    if isinstance(error, OSError) and error.filename is not None:
        return RequestError(f"{error.filename}: {error.strerror}")
    return error


def _one_line(text: str) -> str:
    return " ".join(text.split())
