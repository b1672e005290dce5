"""A Stripe that nobody here wrote (PyPI ``localstripe``), as a process of its own on the loopback.

It knows customers, cards, plans, subscriptions, invoices, payment intents, refunds, and signs its webhooks; it has no
prices (a plan's id stands where a price's would), no Checkout, and tells nothing of updates and refunds.
"""

from __future__ import annotations

import json
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.processes import free_port, spawn, wait_until

_SERVE = "import sys; from aiohttp import web; from localstripe.server import app; " + (
    "web.run_app(app, host='127.0.0.1', port=int(sys.argv[1]), print=None)"
)
CARD = "4242424242424242"
POOR_IBAN = "DE62370400440532013001"  # its debits fail a moment later


@dataclass(frozen=True)
class LocalStripe:
    url: str
    key: str

    def ask(self, method: str, path: str, **fields: Any) -> dict[str, Any]:
        """One request, as any of its clients would make it."""
        data = urllib.parse.urlencode(list(_flat(fields))).encode() if fields else None
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("Authorization", f"Bearer {self.key}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        return self.ask("POST", path, **fields)

    def tell(self, url: str, secret: str) -> None:
        """Where its webhooks go, signed with what."""
        body = json.dumps({"url": url, "secret": secret}).encode()
        request = urllib.request.Request(f"{self.url}/_config/webhooks/tollgate", data=body, method="POST")
        request.add_header("Content-Type", "application/json")
        urllib.request.urlopen(request, timeout=10).close()

    def customer(self, *, iban: str | None = None) -> str:
        """A new customer who pays with a card, or with this account."""
        if iban is None:
            details = {"number": CARD, "exp_month": 12, "exp_year": 2040, "cvc": "123"}
            method = self.post("/v1/payment_methods", type="card", card=details)["id"]
        else:
            owner = {"name": "Acme", "email": "acme@example.com"}
            account = {"type": "sepa_debit", "sepa_debit": {"iban": iban}, "billing_details": owner}
            debit = self.post("/v1/payment_methods", **account)
            method = debit["id"]
        customer = str(self.post("/v1/customers", email="acme@example.com")["id"])
        self.post(f"/v1/payment_methods/{method}/attach", customer=customer)
        self.post(f"/v1/customers/{customer}", invoice_settings={"default_payment_method": method})
        return customer


def _flat(fields: Mapping[str, Any], outer: str = "") -> Iterator[tuple[str, str]]:
    """Stripe's way to write objects and lists in a form."""
    for name, value in fields.items():
        key = f"{outer}[{name}]" if outer else name
        if isinstance(value, Mapping):
            yield from _flat(value, key)
        elif isinstance(value, list):
            yield from _flat({str(index): each for index, each in enumerate(value)}, key)
        else:
            yield key, str(value)


@contextmanager
def localstripe(key: str) -> Iterator[LocalStripe]:
    """A fresh one, ended with the block."""
    port = free_port()
    process = spawn([sys.executable, "-c", _SERVE, str(port)])
    server = LocalStripe(f"http://127.0.0.1:{port}", key)

    def answers() -> bool:
        try:
            server.ask("GET", "/v1/plans")
        except OSError:
            return False
        return True

    try:
        wait_until(answers, what="localstripe", within_s=30)
        yield server
    finally:
        process.terminate()
        process.wait(10)
