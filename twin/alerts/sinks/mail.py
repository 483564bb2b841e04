"""Notices by e-mail over TLS: that there is an alert, how urgent, which rule. No patient and no value.

Mail is read on phones and kept by others: whoever gets one looks the patient up at the site.
"""

from __future__ import annotations

import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Literal

from twin.alerts.alert import MEANING, Notice
from twin.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class MailSink:
    """Sends one mail for each notice that asks for somebody: raised and escalated.

    Attributes:
        host, port: of the mail server. tls: "starttls", or "tls" from the first byte.
        sender, to: addresses.
        user, password_file: if the server asks; the file holds the password alone.
        ca_file: of the server's authority, if the machine does not trust it.
    """

    host: str
    sender: str
    to: tuple[str, ...] | list[str]
    port: int = 587
    tls: Literal["starttls", "tls"] = "starttls"
    user: str = ""
    password_file: str = ""
    ca_file: str = ""
    name: str = "email"
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if self.tls not in ("starttls", "tls"):
            raise DataError("tls: allowed are starttls and tls; mail is not sent in the clear")
        if not self.to or any("\n" in each or "@" not in each for each in (self.sender, *self.to)):
            raise DataError("sender, to: expected addresses")

    def send(self, notice: Notice) -> None:
        """Raises if the server did not take the mail."""
        if notice.event not in ("raised", "escalated"):
            return
        context = ssl.create_default_context(cafile=self.ca_file or None)
        if self.tls == "tls":
            with smtplib.SMTP_SSL(self.host, self.port, timeout=self.timeout_s, context=context) as server:
                self._deliver(server, notice)
        else:
            with smtplib.SMTP(self.host, self.port, timeout=self.timeout_s) as server:
                server.starttls(context=context)
                self._deliver(server, notice)

    def _deliver(self, server: smtplib.SMTP, notice: Notice) -> None:
        if self.user:
            server.login(self.user, Path(self.password_file).read_text(encoding="utf-8").strip())
        server.send_message(_mail(self, notice))


def _mail(sink: MailSink, notice: Notice) -> EmailMessage:
    alert = notice.alert
    mail = EmailMessage()
    mail["From"], mail["To"] = sink.sender, ", ".join(sink.to)
    mail["Subject"] = f"Twinward alert {alert.id} {notice.event}, priority {alert.priority}"
    mail["X-Twinward-Notice"] = notice.id
    mail.set_content(
        f"Alert {alert.id} was {notice.event} at {notice.at:%Y-%m-%d %H:%M} UTC.\n"
        f"Priority {alert.priority}: {MEANING[alert.priority]}.\n\n"
        "Which patient it is about: `twinward site alerts` at the site.\n"
        "Twinward is not a medical device.\n"
    )
    return mail
