"""The door for joiners: TLS and the proof, until a joiner has shown that it has the key.

Accepting connections, and the limits on their number and time, come from the socket server,
``script/socketserver.py``.  Start at ``Door``.
"""

from __future__ import annotations

import hmac

from .._transports.tls import Tls
from ..script import socketserver

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any, Protocol

    class Return(Protocol):
        """What a joiner comes back to."""

        key: bytes

        def come(self, connection: Connection) -> None: ...


WORD = b"join"  # in the proof, so that one for a socket server is useless here, and vice versa
RETURN = b"return"  # in that of a joiner which comes back, and has a key for that alone
HEX = b"0123456789abcdef"
UNPROVED_BYTES = 1 << 18  # that a visitor may send before its proof, the handshake included


class Connection:
    """A visitor's connection with TLS, which never waits; ``tls`` lasts longer."""

    def __init__(self, sock: socket.socket, tls: Tls) -> None:
        self.sock, self.tls = sock, tls
        self._taken = 0  # bytes, until the proof
        self.fileno, self.shutdown, self.close = sock.fileno, sock.shutdown, sock.close

    def do_handshake(self) -> None:
        """Go on with the TLS handshake; OSError if it has to wait, or fails."""
        try:
            self.tls.begin(self._receive, self._send_all)
        except ValueError as exc:
            raise OSError(str(exc)) from exc

    def recv(self, limit: int) -> bytes:
        """Return what has arrived, b"" at the end; OSError if it has to wait."""
        return self.tls.read_some(limit, self._receive)

    def _receive(self, limit: int) -> bytes:
        data = self.sock.recv(limit)
        self._taken += len(data)
        if self._taken > UNPROVED_BYTES:  # records without content could go on for ever
            raise OSError("it sends more than a proof")
        return data

    def send(self, data: bytes) -> int:
        """Send all, or raise OSError."""
        self._send_all(self.tls.sealed(data))
        return len(data)

    def _send_all(self, data: bytes) -> None:
        # Everything sent here is short enough for any system to take at once.
        try:
            if self.sock.send(data) == len(data):
                return
        except BlockingIOError:
            pass
        raise OSError("it takes nothing")


class DoorCertificate(socketserver.Certificate):
    """The coordinator's TLS; readers and writers of its connections are different threads."""

    def wrap(self, conn: socket.socket) -> Connection:
        """Return a connection with TLS; nothing waits."""
        return Connection(conn, Tls(self._context))


class JoinVisitor(socketserver.Visitor):
    """A connection at the door."""

    _server: Door

    def _greet(self) -> None:
        super()._greet()
        self._words.append(WORD)

    def _say(self, *words: bytes) -> None:
        if words[0] == b"error":
            self._server.on_refusal(self.host, socketserver.printable(words[1]))
        super()._say(*words)

    def _check(self, line: bytes, rest: bytes) -> None:
        words = line.split(b" ")
        if len(words) == 5 and words[0] == socketserver.VERSION and not rest:
            self._let_return(*words[1:])
        else:
            super()._check(line, rest)

    def _let_return(self, nonce: bytes, binding: bytes, proved: bytes, id: bytes) -> None:
        """Check the proof of a joiner that comes back, whose id tells which key it is about."""
        server, certificate = self._server, self._server.certificate
        found = server.find_return(id.decode("latin-1"))
        if found is None:
            raise socketserver.Refused("nobody waits for this joiner to come back")
        words = [*self._words[:-1], RETURN, id, nonce, binding]
        wanted = socketserver.proof(found.key, b"client", words)
        if len(nonce) != 64 or not hmac.compare_digest(proved, wanted):
            raise socketserver.Refused("the client has another key")
        if certificate is None or binding != certificate.fingerprint:
            raise socketserver.Refused("the client has seen another certificate")
        self.is_known, self._step = True, None  # type: ignore[assignment]
        self._say(b"ok", socketserver.proof(found.key, b"server", words))
        found.come(self.conn)

    def _admit(self, proved: bytes) -> None:
        id = self._words[-2]
        if id.strip(HEX):  # others may be no text, or one that a terminal obeys
            raise socketserver.Refused("a joiner's id is a number in hex")
        self._step = None  # type: ignore[assignment]
        self._server.on_proof(self.conn, id.decode("ascii"))


class Door(socketserver.Server):
    """Passes joiners that have proved that they have the key to ``on_proof``.

    on_proof: called with the connection and the id of a joiner; must not wait.  on_refusal: called
    with the host of one that is turned away, and why.  find_return: returns what a joiner with an
    id comes back to, or None.  Threads as for ``socketserver.Server``.
    """

    visitor_class = JoinVisitor

    def __init__(
        self,
        listener: socket.socket,
        key: bytes,
        certificate: DoorCertificate,
        on_proof: Callable[[Any, str], object],
        on_refusal: Callable[[str, str], object],
        find_return: Callable[[str], Return | None],
    ) -> None:
        super().__init__(listener, key=key, certificate=certificate)
        self.on_proof, self.on_refusal = on_proof, on_refusal
        self.find_return = find_return

    def disown(self) -> None:
        """In a forked process: release what is the parent's, and leave it as it is."""
        for sock in (self._listener, self._woken, self._waker):
            sock.close()
        for visitor in self._visitors:
            visitor.conn.close()
