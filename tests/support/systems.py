"""A billing system of ``examples/``, served as it is: real processes, Redis and database, and simulated models.

The example's text is used; only where it listens for models and keeps its data is the test's. ``edits`` replace pieces
of the text, for instance a month by seconds, so that a period turns on the real clock.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from stripe import WebhookSignature

from gateway.simulator.child import Simulator
from tests.support.gateways import ROOT, Served, served

WEBHOOK_SECRET = "whsec_of_the_tests"
STRIPE = {"STRIPE_SECRET_KEY": "sk_test_of_the_tests", "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET}
ADMIN_TOKEN = "admin-token-of-the-tests"
PATIENCE_S = 20  # a busy machine may keep Redis from its 250 ms, or a call before from its settle: "try again shortly"
MODEL = "claude-sonnet-4-5"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; ``json`` is None for another body."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def told_to_come_again(self) -> bool:
        return self.status == 503 or '"held_elsewhere"' in self.text

    @property
    def json(self) -> Any:
        return json.loads(self.text) if self.text[:1] in ("{", "[") else None

    def ok(self) -> Any:
        """The body of an answer that must be a success."""
        assert self.status < 300, f"{self.status}: {self.text}"
        return self.json

    def refused(self, status: int, reason: str) -> Any:
        """The error of an answer that must be this refusal."""
        assert self.status == status, f"{self.status}: {self.text}"
        error = self.json["error"]
        said = self.json if isinstance(error, str) else error  # in words of the config's own, or of ours
        assert said.get("tollgate", {}).get("reason", said.get("code")) == reason, self.text
        return said


def _exchange(where: str, method: str, target: str, content: bytes | None, headers: Mapping[str, str]) -> Answer:
    connection = http.client.HTTPConnection(where, timeout=60)
    try:
        connection.request(method, target, content, dict(headers))
        answer = connection.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, names, answer.read().decode())
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Customer:
    """An account with a key of its own."""

    system: System
    id: str
    external_id: str
    key: str

    def call(self, *, feature: str | None = None, tokens: tuple[int, int] | None = None, **options: Any) -> Answer:
        """A model call through the proxy; ``tokens`` are the input and output that the model will report."""
        return self.system.call(self.key, feature=feature, tokens=tokens, **options)

    def get(self, path: str, **query: str) -> Answer:
        return self.system.request("GET", path, key=self.key, query=query)

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return self.system.request("POST", path, key=self.key, body=body, headers=headers)

    def delete(self, path: str) -> Answer:
        return self.system.request("DELETE", path, key=self.key)

    def wallet(self, name: str) -> Any:
        """A wallet of ``GET /api/billing/balance``."""
        wallets = self.get("/api/billing/balance").ok()["wallets"]
        return next(wallet for wallet in wallets if wallet["wallet"] == name)


@dataclass(slots=True)
class System:
    """A served example."""

    served: Served
    models: Simulator

    def request(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        base: str | None = None,
    ) -> Answer:
        """Header names may be written with underscores. Who is told to come again does, as a client would."""
        sent = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        if content is not None:
            sent.setdefault("content-type", "application/json")
        where = urlsplit(base or self.served.url).netloc
        target = path + ("?" + urlencode(query) if query else "")
        answer = _exchange(where, method, target, content, sent)
        deadline_s = time.monotonic() + PATIENCE_S
        while answer.told_to_come_again and time.monotonic() < deadline_s:
            answer = _exchange(where, method, target, content, sent)
        return answer

    def admin(self, method: str, path: str, body: Any = None, **query: str) -> Answer:
        """A call of the admin API."""
        place = self.served.admin_url
        return self.request(method, f"/admin/v1{path}", key=ADMIN_TOKEN, body=body, query=query, base=place)

    def cli(self, *arguments: str) -> Any:
        """A command, with ``--json``."""
        return self.served.cli(*arguments)

    def customer(self, external_id: str, **fields: Any) -> Customer:
        """Signed up by the operator, with a key."""
        account = self.admin("POST", "/accounts", {"name": external_id, "external_id": external_id, **fields}).ok()
        key = self.admin("POST", f"/accounts/{account['id']}/keys", {}).ok()
        return Customer(self, account["id"], external_id, key["key"])

    def call(
        self,
        key: str,
        *,
        feature: str | None = None,
        tokens: tuple[int, int] | None = None,
        max_tokens: int = 256,
        text: str = "Hello",
        steering: str = "",
        **headers: str,
    ) -> Answer:
        """One message to the simulated model."""
        usage = f"input={tokens[0]} output={tokens[1]}" if tokens is not None else ""
        marker = f" [[simulate {usage} {steering}]]" if usage or steering else ""
        body = {"model": MODEL, "max_tokens": max_tokens, "messages": [{"role": "user", "content": text + marker}]}
        named = {"tollgate-feature": feature} if feature else {}
        return self.request(
            "POST", "/v1/messages", key=key, body=body, headers={"anthropic-version": "2023-06-01", **named, **headers}
        )

    def stripe(self, *events: Any) -> None:
        """What Stripe tells, signed as it signs."""
        for event in events:
            content = json.dumps(event).encode()
            signature = str(WebhookSignature.generate_signature_header(content.decode(), WEBHOOK_SECRET))
            answer = self.request("POST", "/webhooks/stripe", body=content, headers={"stripe_signature": signature})
            assert answer.ok()["state"] == "done", f"{event['type']}: {answer.text}"

    def served_by_models(self) -> int:
        """How many requests the models have seen."""
        answer = self.request("GET", "/journal/totals", base=self.models.url)
        return int(answer.ok()["last_id"])

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        text = self.request("GET", "/metrics", base=self.served.admin_url).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = (line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(each in line for each in wanted))

    def assert_books_agree(self) -> None:
        """Ledger = balances = Redis, to the last step."""
        found = self.cli("audit")
        assert found["difference"] == 0 and found["moving"] == 0, found


@contextmanager
def system(
    folder: Path,
    example: str,
    models: Simulator,
    *,
    database: str = "embedded",
    edits: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    workers: int = 2,
) -> Iterator[System]:
    """Serve ``examples/{example}.yaml``."""
    text = (ROOT / "examples" / f"{example}.yaml").read_text()
    changes = {
        "https://api.anthropic.com": models.url,
        "https://api.openai.com/v1": f"{models.url}/v1",
        "storage: {redis: embedded, database: embedded}": f'storage: {{redis: embedded, database: "{database}"}}',
        "workers: auto": 'workers: auto, secret: "${TEST_SECRET}"',
        **(edits or {}),
    }
    for old, new in changes.items():
        assert old in text, f"{example}.yaml has no {old}"
        text = text.replace(old, new)
    environment = {
        "TOLLGATE_ADMIN_TOKEN": ADMIN_TOKEN,
        "TEST_SECRET": "a-secret-of-the-tests-with-32-bytes",
        "ANTHROPIC_API_KEY": "sk-simulated",
        "OPENAI_API_KEY": "sk-simulated",
        **(env or {}),
    }
    with served(folder, text, arguments=("--workers", str(workers)), env=environment) as running:
        yield System(running, models)
