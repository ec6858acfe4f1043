"""Logins to a session whose connection was lost: each runs a command, and makes one request.

A session is a worker and its supervisor.  Over there, the command runs ``far_connector``.  Start at
``Login``.
"""

from __future__ import annotations

import os
import select

from .._clock import monotonic
from .._ship import parts
from ..gateway_base import _OSError, printable, write_all
from .far_link import OPENING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .._specs import Settings

NOISE_MAX = 64 * 1024  # bytes that may come before the answer
ANSWER_MAX = 1000
LOOK_MS = 500  # between looks for the end of the command, which its output may hide


class Unreachable(Exception):
    """This attempt gave no connection."""


class Ended(Exception):
    """The worker has ended; ``status`` is its exit status, None if nobody knows it any more."""

    def __init__(self, text: str, status: int | None) -> None:
        super().__init__(text)
        self.status = status


class Rebooted(Ended):
    """The host that answered was started after the worker, unless it is another of that name."""


class Refused(Exception):
    """The session is there, and will not be resumed."""


class Session:
    """What is needed to find a worker again.  ``epoch`` rises with each attempt."""

    def __init__(self, settings: Settings) -> None:
        self.folder = (
            f"/tmp/execnet-resume-{os.urandom(8).hex()}"  # over there; nobody can guess it
        )
        self.secret = os.urandom(16).hex()
        self.settings = settings
        self.epoch = 0
        self.boot = self.host = ""
        self.is_placed = False

    def place(self, ready: dict[str, Any]) -> None:
        """Note on which host, and in which boot, the worker says that it runs."""
        self.boot, self.host = printable(str(ready["boot"])), printable(str(ready["host"]))
        self.is_placed = True

    def line(self, marker: bytes, verb: str) -> bytes:
        """Return the line for the interpreter over there."""
        asked = f"connect({marker!r}, {self.folder!r}, {self.secret!r}, {verb!r}, {self.epoch})"
        if self.settings.is_in_server:  # an old one would run it in its own process
            asked = f'if globals().get("in_own_process"): {asked}'
        code = f"{parts.lowered('_resume.far_connector')}\n{asked}\n"
        return (ascii(code) + "\n").encode("ascii")

    def explain_unknown(self, boot: str, host: str) -> Exception:
        """Return the error for a host that does not know the session."""
        if not self.host:  # it may never have begun
            return Ended("nobody knows it there", None)
        if host != self.host:
            return Unreachable(f"another host answered, {printable(host)}, not {self.host}")
        if boot != self.boot:
            return Rebooted("its host was rebooted", None)
        return Ended("neither it nor its supervisor is there any more", None)


class Login:
    """One attempt, until a deadline by ``time.monotonic()``.

    make: makes a connection to the place of the spec; returns its stream.  Called with the time
    when it has to be there.  reach_by: when the attempt is given up, unless the host has answered
    or has_network() is true.
    """

    def __init__(
        self,
        session: Session,
        make: Callable[[float], Any],
        deadline: float,
        reach_by: float | None = None,
        has_network: Callable[[], bool] = bool,
    ) -> None:
        timeout_s = session.settings.connect_timeout_s
        if timeout_s is not None:
            deadline = min(deadline, monotonic() + timeout_s)
        self._deadline, self._reach_by = deadline, reach_by
        self._has_network = has_network
        self._session = session
        self._make = make
        self._carrier: Any = None
        self._received = b""

    def resume(self, keep: Callable[[Any], object], read_bytes: int) -> tuple[Any, int]:
        """Connect to the worker anew; return the stream, and how many bytes the worker has read.

        keep: called with the stream as soon as there is one.  read_bytes: how many were read
        here.  Raises ``Unreachable``, ``Ended`` or ``Refused``, and nothing is left then.
        """
        self._session.epoch += 1
        epoch = self._session.epoch
        try:
            self._ask("resume", keep)
            their_epoch, peer_read = OPENING.unpack(self._read(OPENING.size))
            if their_epoch != epoch:
                raise Unreachable(f"epoch {their_epoch} answered, not {epoch}")
            self._write(OPENING.pack(epoch, read_bytes))
        except BaseException:
            self._discard()
            raise
        return self._carrier, peer_read

    def kill(self, keep: Callable[[Any], object]) -> int | None:
        """Have the supervisor kill the worker; return its exit status, None if not known.

        Raises ``Ended`` if neither was there any more, ``Unreachable`` or ``Refused`` if it may
        run on.
        """
        try:
            self._ask("kill", keep)
        except Ended as exc:
            if exc.status is None:
                raise
            return exc.status
        finally:
            self._discard()
        return None

    def _ask(self, verb: str, keep: Callable[[Any], object]) -> None:
        """Ask, and return if the answer is "ok"."""
        try:
            self._carrier = self._make(self._deadline)
        except _OSError as exc:
            raise Unreachable(str(exc)) from exc
        keep(self._carrier)
        marker = b"\0execnet\0" + os.urandom(8).hex().encode() + b"\n"
        self._write(self._session.line(marker, verb))
        while marker not in self._received:
            if len(self._received) > NOISE_MAX:
                raise Unreachable(f"no answer came within {NOISE_MAX} bytes")
            self._receive()
        self._received = self._received.partition(marker)[2]
        while b"\n" not in self._received:
            if len(self._received) > ANSWER_MAX:
                raise Unreachable("the answer has no end")
            self._receive()
        line, _, self._received = self._received.partition(b"\n")
        word, *more = line.decode("utf-8", "replace").split(" ")
        self._act(word, more)

    def _act(self, word: str, more: list[str]) -> None:
        if word == "ok":
            return
        if word == "ended" and len(more) == 1:
            known = more[0].lstrip("-").isdigit()
            raise Ended("it ended while it was out of reach", int(more[0]) if known else None)
        if word == "unknown" and len(more) == 2:
            raise self._session.explain_unknown(*more)
        text = printable(" ".join(more))
        if word == "refused":
            raise Refused(f"its supervisor refused: {text}")
        raise Unreachable("a newer connection was made" if word == "older" else "no such answer")

    def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            self._receive()
        data, self._received = self._received[:size], self._received[size:]
        return data

    def _receive(self) -> None:
        """Return what arrives; ``Unreachable`` at the end, and when the time is over."""
        fd = self._carrier.infile.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        now, reach_by = monotonic(), self._reach_by
        left_s = self._deadline - now
        if left_s <= 0:
            raise Unreachable(self._why("no answer came in time"))
        if reach_by is not None and now < reach_by:
            left_s = min(left_s, reach_by - now)
        elif reach_by is not None and not self._is_reached():
            raise Unreachable(self._why("the host does not answer"))
        data = b""
        try:
            if poll.poll(min(LOOK_MS, int(1000 * left_s) + 1)):
                data = os.read(fd, 65536)
            elif not self._carrier.has_ended():
                return
        except OSError:
            pass
        if not data:
            self._carrier.poll_until(monotonic() + 1.0)  # then its stderr is complete
            raise Unreachable(self._why("the command ended"))
        self._received += data

    def _is_reached(self) -> bool:
        return bool(self._received or self._has_network() or self._carrier.is_reached())

    def _why(self, text: str) -> str:
        said = self._carrier.stderr_tail().strip().splitlines()
        return f"{text}: {printable(said[-1])}" if said else text

    def _write(self, data: bytes) -> None:
        try:
            write_all(self._carrier, data)
        except (OSError, ValueError) as exc:
            self._carrier.poll_until(monotonic() + 1.0)  # as above
            raise Unreachable(self._why(f"the command took nothing: {exc}")) from exc

    def _discard(self) -> None:
        if self._carrier is not None:
            discard(self._carrier)


def discard(carrier: Any) -> None:
    """End a command that carries nothing any more, and leave nothing of it behind."""
    carrier.kill()
    carrier.wait()
    carrier.close_write()
    carrier.close_read()
