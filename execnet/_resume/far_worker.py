"""The worker's end of a gateway that outlives its connections.

A new connection comes as two descriptors from the supervisor, which learns when a connection is
lost and when one is in use.  This file is shipped; it keeps to what Python 2.7 and today's Python
both accept.  Start at ``tell``.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct

from ..gateway_base import Message, _decoded, dumps_internal, geterrortext
from .far_connector import place
from .far_link import FULL, OPENING, Connection, Link, LinkWriter, clock
from .far_supervisor import receive_fd, remove_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLUSH_S = 5.0  # how long the worker, when it ends, waits until its last frames are written


def tell(gateway: Any, told: Any) -> None:
    """Begin; called in the receiver thread, before anything but the source has come."""
    try:
        link = WorkerLink(gateway, told)
    except Exception as exc:
        gateway._post(Message.ACK, 0, dumps_internal({"error": _decoded(str(exc))}))
        gateway._trace("no resuming", geterrortext(exc))
        return
    gateway._io = link
    gateway._writer = link.writer
    gateway._post(Message.ACK, 0, dumps_internal(dict(zip(("boot", "host"), place()))))


class WorkerLink(Link):
    """The stream of a worker that has a supervisor."""

    def __init__(self, gateway: Any, told: Any) -> None:
        fd = gateway.is_watched
        if fd in (True, False):
            raise EnvironmentError("its first process can't be forked, or had threads already")
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        self._supervisor = socket.fromfd(fd, socket.AF_UNIX, socket.SOCK_STREAM)
        os.close(fd)
        self._gateway, self._folder = gateway, told["folder"]
        self._begin(told)
        old = gateway._io
        connection = Connection(os.dup(old.infile.fileno()), os.dup(old.outfile.fileno()), 0)
        super(WorkerLink, self).__init__(gateway.execmodel, connection)
        old.close_read()
        old.close_write()
        self._opening: Connection | None = None  # its other end has not said yet how much it read
        self._opened = b""
        LinkWriter(self, gateway.id)

    def _begin(self, told: Any) -> None:
        """Make the supervisor begin; raises its reason if it can't."""
        options = {name: told[name] for name in ("folder", "secret", "seconds", "end_s")}
        code = told["supervisor"] + "\nOPTIONS.update(%r)\n" % (options,)
        data = code.encode("utf-8")
        self._supervisor.sendall(b"%08d" % len(data) + data)
        line = b""
        while not line.endswith(b"\n"):
            byte = self._supervisor.recv(1)
            if not byte:
                raise EnvironmentError("its supervisor has ended")
            line += byte
        if line != b"ready\n":
            raise EnvironmentError("its supervisor: %s" % line.decode("utf-8").strip())
        errors_fd = receive_fd(self._supervisor)
        os.dup2(errors_fd, 2)
        os.close(errors_fd)

    # ------------------------------------------------------------ connections

    def on_lost(self, connection: Connection, why: str) -> None:
        """Tell the supervisor, which watches the time from now on."""
        self._say(b"l%d " % connection.epoch)

    def on_used(self, connection: Connection) -> None:
        """Tell the supervisor, which need not watch the time any more."""
        self._say(b"u%d " % connection.epoch)

    def _say(self, word: bytes) -> None:
        try:
            self._supervisor.sendall(word)
        except (EnvironmentError, socket.error):  # it has ended, and the link's thread sees that
            pass

    def watched(self) -> list[int]:
        """Return the descriptors that the link's thread is to watch."""
        opening = [self._opening.read_fd] if self._opening is not None else []
        return [self._supervisor.fileno()] + opening

    def on_ready(self, ready: dict[int, int]) -> None:
        """Take what the supervisor sends, and the first bytes of a new connection."""
        opening = self._opening
        if opening is not None and opening.read_fd in ready:
            self._read_opening(opening)
        if self._supervisor.fileno() in ready:
            self._take_connection()

    def _take_connection(self) -> None:
        epoch = b""
        while len(epoch) < 8:
            try:
                data = self._supervisor.recv(8 - len(epoch))
            except EnvironmentError:  # it was killed before it had read all
                data = b""
            if not data:
                self._end_alone()
                return
            epoch += data
        (number,) = struct.unpack("!Q", epoch)
        if not number:
            self.stop("no connection came in time")
            return
        fds = receive_fd(self._supervisor), receive_fd(self._supervisor)
        self._give_up_opening()
        with self._changing:
            old, after, self._next = self.connection, self._next, None
        if after is not None:
            after[0].close()
        if old is not None:
            self.lose(old, "there is a newer connection")
        # Before anything is read of this one, the older one is closed, and what was read is known.
        while self._given_up:
            with self._reading:
                self._given_up.popleft().close()
        self._opening, self._opened = Connection(fds[0], fds[1], number), b""
        try:
            os.write(fds[1], OPENING.pack(number, self.read_bytes))
        except EnvironmentError:
            self._give_up_opening()

    def _read_opening(self, opening: Connection) -> None:
        data = b""
        try:
            data = os.read(opening.read_fd, OPENING.size - len(self._opened))
        except EnvironmentError as exc:
            if exc.errno in FULL:
                return
        self._opened += data
        if not data:
            self._give_up_opening()
        elif len(self._opened) == OPENING.size:
            self._opening = None
            epoch, peer_read = OPENING.unpack(self._opened)
            if epoch == opening.epoch:
                self.use(opening, peer_read)
            else:
                opening.close()

    def _give_up_opening(self) -> None:
        if self._opening is not None:
            self._opening.close()
            self._say(b"l%d " % self._opening.epoch)
        self._opening = None

    # ------------------------------------------------------------ the end

    def _end_alone(self) -> None:
        """End, and leave nothing behind: nobody watches the time any more."""
        self._gateway._say_goodbye(1, "its supervisor ended")
        self._take_frames()
        connection = self.connection
        while connection is not None and self._ahead and self._write_some(connection):
            pass
        remove_files(self._folder)
        self.stop("its supervisor ended")

    def finish(self) -> None:
        """Wait until all is written, or can't be, as the process is about to end."""
        ends_at = clock() + FLUSH_S
        while not self.is_over and clock() < ends_at and self._has_unwritten():
            self.bell.ring()
            select.select([], [], [], 0.005)

    def _has_unwritten(self) -> bool:
        return self.connection is not None and bool(self._ahead or self.writer._frames)
