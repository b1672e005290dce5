"""``tollgate`` and ``python -m gateway``: one command line, run to its exit code."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run what stands in ``sys.argv``."""
    try:
        from gateway.cli.frame import execute
        from gateway.cli.root import app

        code = execute(app, sys.argv[1:])
    except KeyboardInterrupt:  # while importing
        code = 128 + signal.SIGINT
    sys.exit(code)


if __name__ == "__main__":
    main()
