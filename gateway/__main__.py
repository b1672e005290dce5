"""``tollgate`` and ``python -m gateway``: one command line, run to its exit code."""

from __future__ import annotations

import sys

from gateway.cli.frame import execute
from gateway.cli.root import app


def main() -> None:
    """Run what stands in ``sys.argv``."""
    sys.exit(execute(app, sys.argv[1:]))


if __name__ == "__main__":
    main()
