"""The one place where people reach a site's patients: who asks, whether they may, and the record of it.

A Unix socket in the site's folder. The kernel says which user of this machine is at its other end; the
site's access.toml says what that user may do (`trust.roles`), read anew for each question. What is
allowed is in the audit log before it is answered, what is refused as well; if the log cannot be written,
there is no answer.
"""

from __future__ import annotations

import json
import logging
import os
import pwd
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from client.counter import LONGEST_QUESTION_BYTES, Answer, receive, refuse, reply
from client.errors import ClientError
from conf.errors import TwinwardError
from trust.roles import Roles

QUESTION_S: Final = 30.0
"""How long a caller may take to say what it wants."""
MOST_CALLERS: Final = 64
MOST_OF_ONE: Final = 8
"""So many callers at a time of all users, and of one, who cannot keep the others out."""
_BREATH_S: Final = 0.2
USER: Final = "user"
"""The word of a question under which its service finds who asks, whatever the caller wrote there."""

logger = logging.getLogger(f"twinward.{__name__}")

Words = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One question that can be asked.

    Attributes:
        right: what the caller needs (`trust.roles.RIGHTS`).
        answer: makes the answer; raises TwinwardError with what a caller may read.
        about: what goes into the audit log of a call, of its words: never a patient's value or identifier.
    """

    right: str
    answer: Callable[[Words], Answer]
    about: Callable[[Words], str] = lambda _: ""


class Door:
    """Answers at the socket until `close`; a caller each in a thread of its own."""

    def __init__(
        self,
        path: Path,
        services: Mapping[str, Service],
        *,
        roles: Callable[[], Roles],
        record: Callable[[str, str, str, str], None],
        group: int | None = None,
    ) -> None:
        """Begins to listen.

        Args:
            path: of the socket, in a folder that only the site's own people can reach.
            services: what can be asked, by name.
            roles: the rights as they are now.
            record: writes (kind, user, right, about) durably; kinds are access_granted and access_refused.
            group: whose members may also reach the socket; only this process's user by default.

        Raises:
            ClientError: home_unreadable, if the socket cannot be made.
        """
        self._services, self._roles, self._record = dict(services), roles, record
        self._callers: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.path = path
        self._listener = _listen(path, group)
        self._thread = threading.Thread(target=self._accept, name="door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes no more questions, and removes the socket."""
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
        self._listener.close()
        self._thread.join(QUESTION_S)
        with suppress(OSError):
            self.path.unlink()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                line, _ = self._listener.accept()
            except OSError:  # no file is left, perhaps: there will be again
                self._closed.wait(_BREATH_S)
                continue
            uid = _uid_of(line)
            if not self._let_in(uid):
                line.close()
                continue
            threading.Thread(target=self._serve, args=(line, uid), name="caller", daemon=True).start()

    def _let_in(self, uid: int) -> bool:
        with self._lock:
            if self._callers[uid] >= MOST_OF_ONE or self._callers.total() >= MOST_CALLERS:
                return False
            self._callers[uid] += 1
            return True

    def _serve(self, line: socket.socket, uid: int) -> None:
        try:
            with line:
                line.settimeout(QUESTION_S)
                self._answer(line)
        except (OSError, ValueError):
            logger.info("a caller went away, or asked in no form that is known")
        finally:
            with self._lock:
                self._callers[uid] -= 1

    def _answer(self, line: socket.socket) -> None:
        user = user_of(line)
        name, words = _question(receive(line, LONGEST_QUESTION_BYTES, within_s=QUESTION_S))
        line.settimeout(QUESTION_S)
        try:
            answer = self._judged(user, name, words)
        except TwinwardError as error:
            code = error.code if isinstance(error, ClientError) else "malformed"
            refuse(line, code, str(error).removesuffix(f" [{code}]"))
        except Exception as error:  # noqa: BLE001  its text may hold a patient's value
            logger.error("the question %s failed (%s)", name, type(error).__name__)
            refuse(
                line, "internal_error", "The question could not be answered; the log says which part failed."
            )
        else:
            reply(line, answer)

    def _judged(self, user: str, name: str, words: Words) -> Answer:
        service = self._services.get(name)
        if service is None:
            raise ClientError("malformed", f"There is no question {name[:40]!r}.")
        words = {**words, USER: user}
        about = service.about(words)
        if not self._roles().may(user, service.right):
            self._record("access_refused", user, service.right, about)
            raise ClientError(
                "access_refused",
                f"The user {user} may not do this: it needs the right {service.right}, which access.toml"
                " gives by a role. See docs/access.md.",
            )
        self._record("access_granted", user, service.right, about)
        return service.answer(words)


def user_of(line: socket.socket) -> str:
    """Name of the user at the other end, as the kernel knows it; its number, if it has no name."""
    uid = _uid_of(line)
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _uid_of(line: socket.socket) -> int:
    data = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", data)[1]
    return uid


def _question(data: bytes) -> tuple[str, Words]:
    try:
        found = json.loads(data)
    except RecursionError:
        found = None
    if not isinstance(found, dict) or set(found) != {"ask", "words"}:
        raise ValueError("Expected a question and its words.")
    name, words = found["ask"], found["words"]
    if not isinstance(name, str) or not isinstance(words, dict):
        raise ValueError("Expected a question and its words.")
    return name, words


def _listen(path: Path, group: int | None) -> socket.socket:
    """A listening socket; one that a dead process left is removed, since the site's lock is ours."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            path.unlink()
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        if group is not None:
            os.chown(path.parent, -1, group)
            path.parent.chmod(0o710)
            os.chown(path, -1, group)
            path.chmod(0o660)
        listener.listen(MOST_CALLERS)
    except OSError as error:
        listener.close()
        raise ClientError(
            "home_unreadable",
            f"Expected to make the socket {path} ({error.strerror}); a path has at most 107 characters.",
        ) from None
    return listener
