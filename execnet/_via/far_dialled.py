"""A worker that others go via waits here for one that dials in, and forwards its bytes.

The coordinator sends a key for each, and both sides prove that they have it: only the joiner that
the coordinator has sent here gets in, and it talks to nobody else.  Connections have TLS, which
ends here, as this forwards what the other hops of a tree forward.

This file is shipped to that worker, with ``far`` and the socket server; it keeps to what
Python 2.7 and today's Python both accept.  Start at ``Dialled``.
"""

from __future__ import annotations

import os
import socket

from ..script import socketserver
from .far import forward
from .far_ends import as_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..gateway_base import Channel
    from .far_ends import Waits

WORD = b"hop"  # in the proof, so that one for something else is useless here

Visitor: Any = socketserver.Visitor
Server: Any = socketserver.Server


class HopVisitor(Visitor):  # type: ignore[misc]
    """A connection that has not shown yet that it is the joiner's."""

    def _greet(self) -> None:
        Visitor._greet(self)
        self._words.append(WORD)

    def _admit(self, proved: bytes) -> None:
        self._say(b"ok", proved)
        self._step = None
        self._server.take(self.conn)


class Door(Server):  # type: ignore[misc]
    """Listens until the joiner has come, or nobody expects it any more."""

    visitor_class = HopVisitor
    taken: socket.socket | None = None  # the connection of the joiner

    def take(self, conn: socket.socket) -> None:
        """Take the first that has shown that it is the joiner; then this stops listening."""
        if self.taken is not None:
            conn.close()
            return
        self.taken, self._left = conn, 0


class Dialled(object):
    """The connection of one joiner, an owner as in ``far_ends``: until it comes, nothing does.

    request: a dict of ``listen`` (the address), ``listen_s``, ``key`` (in hex) and ``certificate``
    (a PEM; True: make one).  ``peer`` is the port and the SHA-256 of the certificate.
    """

    stderr = None
    open_end = None  # it ends when all was read

    def __init__(self, request: dict[str, Any]) -> None:
        pem = request["certificate"]
        pem = socketserver.make_certificate() if pem is True else as_bytes(pem)
        certificate = socketserver.Certificate(pem)
        key = socketserver.key_of(as_bytes(request["key"]))
        listener = socketserver.listen((str(request["listen"]), 0))
        try:
            self._door = Door(listener, 1, key, certificate, request["listen_s"])
        except BaseException:
            listener.close()
            raise
        self.peer = as_bytes("%d " % self._door.address[1]) + certificate.fingerprint
        self._is_killed = False
        try:
            self._near, self._far = socket.socketpair()
            self.read_fd, self.write_fd = os.dup(self._near.fileno()), os.dup(self._near.fileno())
            socketserver.start_thread(self._run)
        except BaseException:
            self._door.stop()
            self._door.run()  # which now only closes everything
            raise

    def _run(self) -> None:
        try:
            self._door.run()
            if self._door.taken is not None:
                if self._is_killed:
                    socketserver.shut(self._door.taken)
                # It goes on for a while after the joiner's side has ended, not ours.
                socketserver.Relay(self._far, self._door.taken).run()
        finally:
            self._far.close()

    def kill(self, worker_pid: int | None) -> None:
        """Break it off, or stop to wait for it."""
        self._is_killed = True
        self._door.stop()
        socketserver.shut(self._near)
        if self._door.taken is not None:
            socketserver.shut(self._door.taken)  # it may stay for ever

    def close_write(self) -> None:
        """Let the joiner read the end."""
        self._door.stop()
        socketserver.shut(self._near, socket.SHUT_WR)

    def status(self) -> None:
        """Close it, once the joiner has ended it; there is no exit status."""
        self._near.close()

    def wait(self, read_all: Waits) -> tuple[None, bytes]:
        """Wait until it has ended; there is no exit status."""
        read_all.wait()
        self.status()
        return None, b""


def main(channel: Channel) -> None:
    """Wait for the joiner of the next item, and forward; returns at once."""
    data_channel, news, request = channel.receive()
    forward(data_channel, news, request, Dialled(request))
