"""Alerts by e-mail, over the operator's SMTP server.

Rules
1. ``smtps://`` is TLS from the start; ``smtp://`` uses STARTTLS where the server offers it, and sends no password in
   the clear except to this machine.
2. Certificates are verified. Everything has a deadline; smtplib blocks, so it runs in a thread.
3. What is told of a failure is its kind or the server's code, never its words.
"""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from email.message import EmailMessage
from typing import Final
from urllib.parse import unquote, urlsplit

from gateway.billing.alerts.message import Message, mail_of
from gateway.billing.alerts.webhook import Undelivered
from gateway.domain.alerts import Mail

TIMEOUT_S: Final = 10.0  # per step of the conversation
WHOLE_S: Final = 45.0
PORTS: Final = {"smtp": 587, "smtps": 465}
LOCAL: Final = ("localhost", "127.0.0.1", "::1")


async def send(mail: Mail, message: Message, *, timeout_s: float = TIMEOUT_S) -> None:
    """Raises Undelivered."""
    try:
        letter = mail_of(message, mail)
    except ValueError as error:
        raise Undelivered("not an address", lasting=True) from error
    try:
        async with asyncio.timeout(WHOLE_S):
            await asyncio.to_thread(_send, mail, letter, timeout_s)
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        raise Undelivered(f"recipient refused, SMTP {max(codes)}", lasting=min(codes) >= 500) from error
    except smtplib.SMTPResponseException as error:
        raise Undelivered(f"SMTP {error.smtp_code}") from error
    except (smtplib.SMTPException, OSError) as error:  # a deadline's TimeoutError is an OSError
        raise Undelivered(type(error).__name__) from error


def _send(mail: Mail, letter: EmailMessage, timeout_s: float) -> None:
    """Raises SMTPException, OSError."""
    parts = urlsplit(mail.smtp)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    context = ssl.create_default_context()
    if parts.scheme == "smtps":
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=timeout_s, context=context)
    else:
        server = smtplib.SMTP(host, port, timeout=timeout_s)
    with server:
        server.ehlo()
        if parts.scheme == "smtp" and server.has_extn("starttls"):
            server.starttls(context=context)
            server.ehlo()
        elif parts.scheme == "smtp" and parts.username and host not in LOCAL:
            raise smtplib.SMTPNotSupportedError("no STARTTLS: the password stays here")
        if parts.username:
            server.login(unquote(parts.username), unquote(parts.password or ""))
        server.send_message(letter)
