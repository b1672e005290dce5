"""Schemathesis against a running ``tollgate serve``: both listeners, each with its own credential.

The cases per operation are few in the ordinary run; ``TOLLGATE_FUZZ_EXAMPLES`` (``make fuzz``) asks for more.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.billing.http import tables
from gateway.billing.http.route import Raw
from tests.support.gateways import ROOT

EXAMPLES: Final = int(os.environ.get("TOLLGATE_FUZZ_EXAMPLES", "3"))
TIMEOUT_S: Final = 3_000
# Answers that end when the client leaves: an invented request would wait for ever.
ENDLESS: Final = [
    route.path
    for route in tables.CUSTOMERS
    if isinstance(route.answer, Raw) and route.answer.media == "text/event-stream"
]
# What these routes promise: no 5xx, every answer as documented, every bad request refused, every credential looked at.
CHECKS: Final = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """How a run ended."""

    exit_code: int
    output: str
    report: Mapping[str, Any]

    @property
    def cases(self) -> str:
        """Such as ``2328 generated, 2328 passed``."""
        found = re.search(r"Test cases:\n\s*(.+)", self.output)
        return found[1] if found else "no cases"


def fuzz(
    document_url: str, folder: Path, *, credential: str, names: Mapping[str, list[str]], examples: int = EXAMPLES
) -> Fuzzed:
    """Run every phase over the document's operations."""
    report = folder / "report.json"
    command = [
        sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run", document_url,
        "--header", f"Authorization:Bearer {credential}",
        "--checks", ",".join(CHECKS),
        *(option for path in ENDLESS for option in ("--exclude-path", path)),
        "--max-examples", str(examples),
        "--seed", "7",
        "--no-color",
        "--no-shrink",
        "--suppress-health-check", "all",
        "--warnings", "off",
        "--continue-on-failure",
        "--generation-database", "none",
        "--report-json-path", str(report),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.support.fuzz_hooks",
            "TOLLGATE_FUZZ_NAMES": json.dumps(names),
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    found = json.loads(report.read_text()) if report.exists() else {}
    return Fuzzed(done.returncode, done.stdout + done.stderr, found)
