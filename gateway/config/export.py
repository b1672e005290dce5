"""``python -m gateway.config.export > config.schema.json``: the JSON Schema that editors check config.yaml with."""

from __future__ import annotations

import json
import sys

from gateway.config.schema import json_schema


def exported() -> str:
    """The schema's text, as committed."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(exported())
