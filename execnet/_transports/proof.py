"""A client of a socket server: what both sides say before anything is sent for a worker.

The protocol is described in ``script/socketserver.py``.  Start at ``prove``.
"""

from __future__ import annotations

import warnings

from .._clock import monotonic
from .._errors import AuthenticationError, SecurityWarning
from ..script.socketserver import LINE_BYTES, PROVES_WITHIN_S, Prover, binding_of, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Protocol

    from .keys import Wish
    from .tls import Tls

    class Talk(Protocol):
        """A connection to a server, before it is a stream to a worker."""

        def read(self, timeout_s: float) -> bytes:
            """Return what comes, b"" at the end; TimeoutError if nothing does."""

        def write(self, data: bytes) -> None: ...

        def dialled(self, timeout_s: float) -> bytes:
            """Return the binding of a connection without TLS."""

        def begin_tls(self, timeout_s: float) -> bytes:
            """Begin it; return the SHA-256 of the server's certificate, in hex."""


SILENT_S = 2.0  # after that a client without a key takes a server for one that does not greet


class SocketTalk:
    """A connection of this process; ``tls`` encrypts, once TLS has begun."""

    def __init__(self, sock: socket.socket) -> None:
        self.tls: Tls | None = None
        self._sock = sock
        self._until = 0.0  # when all that is waited for has to be here

    def read(self, timeout_s: float) -> bytes:
        """Return what comes, b"" at the end; TimeoutError if nothing does.

        Without TLS, no more than a line: a service says at once what follows on its proof.
        """
        self._set_timeout(timeout_s)
        if self.tls is not None:
            return self.tls.read_some(LINE_BYTES, self._receive)
        import socket

        there = self._sock.recv(LINE_BYTES, socket.MSG_PEEK)
        return self._sock.recv(there.find(b"\n") + 1 or LINE_BYTES)

    def _set_timeout(self, timeout_s: float) -> None:
        timeout_s = max(0.001, timeout_s)
        self._until = monotonic() + timeout_s
        self._sock.settimeout(timeout_s)

    def _receive(self, limit: int) -> bytes:
        left = self._until - monotonic()
        if left <= 0:  # else the bytes of a record of TLS could come one by one for ever
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._sock.recv(limit)

    def write(self, data: bytes) -> None:
        """Send all of it."""
        if self.tls is not None:
            data = self.tls.sealed(data)
        self._sock.sendall(data)

    def dialled(self, timeout_s: float) -> bytes:
        """Return the address that was dialled."""
        return binding_of(self._sock.getpeername())

    def begin_tls(self, timeout_s: float) -> bytes:
        """Begin TLS; return the SHA-256 of the server's certificate, in hex."""
        from .tls import Tls

        self._set_timeout(timeout_s)
        self.tls = Tls()
        return self.tls.begin(self._receive, self._sock.sendall)


class TurnedAway(AuthenticationError):
    """The connection ended before both had their proofs; a crowded server ends some."""


class _Ended(ValueError):
    """The same, without the name of the server."""


class _Silent(TimeoutError):
    """Not even the beginning of a line has come in time."""


def prove(talk: Talk, wish: Wish, name: str, deadline: float | None) -> None:
    """Exchange proofs of the key with a server, as far as the spec asks for them.

    name: of the server, for messages.  deadline: by ``time.monotonic()``, None for the usual.
    Raises ``AuthenticationError``, after which nothing for a worker was sent; ``TurnedAway`` if
    another attempt may succeed.
    """
    try:
        _prove(talk, wish, name, deadline)
    except _Ended as exc:
        raise TurnedAway(f"{name}: {exc}") from exc
    except ConnectionError as exc:
        raise TurnedAway(f"{name} breaks off: {exc}") from exc
    except TimeoutError as exc:
        raise AuthenticationError(f"{name} does not go on with its proof in time") from exc
    except ValueError as exc:
        raise AuthenticationError(f"{name}: {exc}") from exc
    except OSError as exc:
        if isinstance(exc, AuthenticationError):
            raise
        raise AuthenticationError(f"{name} breaks off: {exc}") from exc


def _prove(talk: Talk, wish: Wish, name: str, deadline: float | None) -> None:
    until = monotonic() + PROVES_WITHIN_S
    until = until if deadline is None else min(until, deadline)
    if wish.is_off:
        _check_secrets(wish)
        return
    is_patient = wish.is_needed or wish.fingerprint is not None
    try:
        line = read_line(talk, until, None if is_patient else monotonic() + SILENT_S)
    except _Silent:
        if is_patient:
            raise ValueError(
                "it keeps silent, so it is one of execnet 1 or 2, or runs with "
                "--no-authentication: authentication=none is for these"
            ) from None
        warnings.warn(
            f"{name} proves nothing, and whoever can connect there can run code; "
            "authentication=none says that this is known",
            SecurityWarning,
            stacklevel=2,
        )
        _check_secrets(wish)
        return
    if not line:
        raise _Ended("it ends the connection at once")
    prover = Prover(wish.key)
    is_tls, is_wanted = prover.greeted(line)
    _go_on(talk, wish, prover, until, is_tls, is_wanted)


def _go_on(
    talk: Talk, wish: Wish, prover: Prover, until: float, is_tls: bool, is_wanted: bool
) -> None:
    binding = b""
    if is_tls:
        binding = talk.begin_tls(until - monotonic())
        if wish.fingerprint not in (None, binding.decode()):
            raise ValueError(f"its certificate has another fingerprint, {binding.decode()}")
    elif wish.fingerprint is not None:
        raise ValueError("it has no TLS, and fingerprint= needs it")
    if not is_wanted:  # --no-authentication, with --tls
        if wish.fingerprint is None:
            raise ValueError(f"it proves nothing: say fingerprint={binding.decode()} if that is it")
    elif wish.key is None:
        raise ValueError(
            "it asks for a key, and there is none here: copy the file that it names, "
            "~/.execnet/key unless --key is given there, to the same place here, or use key=FILE"
        )
    else:
        if not is_tls:
            binding = wish.bound.encode() if wish.bound else talk.dialled(until - monotonic())
        talk.write(prover.answer(binding) + b"\n")
        proof = read_line(talk, until)
        if not proof:
            raise _Ended("what listens there has not proved that it has the key")
        prover.proved(proof)


def _check_secrets(wish: Wish) -> None:
    if wish.has_secrets:
        raise ValueError("env: is for servers that have proved that they have the key")


def read_line(talk: Talk, until: float, begins_by: float | None = None) -> bytes:
    """Return a line without its newline; b"" at the end of the connection.

    until, begins_by: by ``monotonic()``, when all of it and when its first byte have to be here.
    Raises TimeoutError: ``_Silent`` if nothing has come.
    """
    line = b""
    while not line.endswith(b"\n"):
        due = until if line or begins_by is None else min(until, begins_by)
        try:
            data = talk.read(max(0.0, due - monotonic()))
        except TimeoutError as exc:
            raise exc if line else _Silent from exc
        line += data
        if b"\n" in line[:-1] or len(line) > LINE_BYTES:
            raise ValueError(f"it says more than it should: {printable(line[:80])}")
        if not data:
            if line:
                raise ValueError(f"it ends after {printable(line[:80])}")
            return b""
    return line[:-1]
