"""The worker's half of ``output=forward``: sends what is written to stdout and stderr.

This file is shipped; it keeps to what Python 2.7 and today's Python both accept.  Two pipes
take the places of descriptors 1 and 2, so the output of C code and child processes comes, too.

An item is (1 or 2, whole lines as bytes, how many lines were dropped in front of them); only
the very last line may lack its end.  The coordinator sends how many bytes it has taken, and at
most ``WINDOW_BYTES`` are on their way (``_features.credit``), so that a reader that stops reading
stops nothing else.
Start at ``serve``; ``Splitter`` has no I/O.
"""

from __future__ import annotations

import binascii
import errno
import os
import sys
import threading
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..gateway_base import Channel

LINE_BYTES = 1 << 16  # a longer line is sent as several; also the most that is read at once
BUFFER_BYTES = 1 << 20  # how much may wait here to be sent
ENTRY_BYTES = 256  # what a waiting item costs in addition to its bytes
WINDOW_BYTES = 1 << 18  # how much may be on the way and not yet reported as taken
# How much may be sent at the end, when nobody reports any more: what waits here, and of each pipe
# what is in it, what was just read, and the beginning of a line.
LAST_BYTES = BUFFER_BYTES + 2 * 3 * LINE_BYTES
STALL_S = 1.0  # how long a print waits for room if nothing is taken meanwhile
FLUSH_S = 5.0  # how long the worker, when it ends, waits until its output is sent
LONG_S = 1e6
ERRORS = (EnvironmentError, EOFError, ValueError)  # the coordinator is gone


class Splitter(object):
    """Cuts what was written into whole lines; no I/O.

    mark: bytes without a newline that stand for the end.  Whatever comes after them is ignored:
    a child process that is still running may have written it.
    """

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._rest = b""
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """Return the lines that are whole now; ``data``, b"" at the end, is at most a read."""
        self.ended = not data
        data = self._rest + data
        end = data.find(self._mark)
        if end >= 0:
            data, self.ended = data[:end], True
        pieces = []
        # Only the first line can be too long, as the others came in one read.  The mark must not
        # be cut, and a part of it may have come already.
        while self._first_line_bytes(data) > LINE_BYTES + len(self._mark):
            end = _end_of_character(data, LINE_BYTES)
            pieces += [data[:end], b"\n"]
            data = data[end:]
        end = len(data) if self.ended else data.rfind(b"\n") + 1
        pieces.append(data[:end])
        self._rest = data[end:]
        return b"".join(pieces)

    def _first_line_bytes(self, data: bytes) -> int:
        end = data.find(b"\n")
        return len(data) if end < 0 else end


def _end_of_character(data: bytes, end: int) -> int:
    """Return the last position up to ``end`` that is not inside a UTF-8 character."""
    for place in range(end, end - 4, -1):
        if ord(data[place : place + 1]) & 0xC0 != 0x80:
            return place
    return end


class Pipe(object):
    """A pipe for what is written to descriptor ``fd``, 1 or 2; it takes its place if asked to.

    ``write_fd`` is closed by ``end``.
    """

    def __init__(self, fd: int, replaces: bool = True) -> None:
        self.fd = fd
        self.dropped = 0  # lines that were dropped and not reported yet
        self._original = _private(os.dup(fd)) if replaces else -1
        self._read_fd, self.write_fd = map(_private, os.pipe())
        if replaces:
            os.dup2(self.write_fd, fd)

    def read(self) -> bytes:
        """Return what was written, at most ``LINE_BYTES``; wait for the first."""
        while True:
            try:
                return os.read(self._read_fd, LINE_BYTES)
            except EnvironmentError as exc:  # Python 2 does not retry by itself
                if exc.errno != errno.EINTR:
                    raise

    def close_read(self) -> None:
        """Make sure that whoever still writes gets an error."""
        os.close(self._read_fd)

    def end(self, mark: bytes) -> None:
        """Restore the descriptor, unless somebody else has, and write the mark."""
        try:
            if self._original >= 0 and os.path.sameopenfile(self.fd, self.write_fd):
                os.dup2(self._original, self.fd)
            os.write(self.write_fd, mark)
        except EnvironmentError:
            pass  # the user's code closed the descriptor, or the reader is gone
        os.close(self.write_fd)
        if self._original >= 0:
            os.close(self._original)


def _private(fd: int) -> int:
    """Keep child processes from inheriting a descriptor; Python 3 does so by itself."""
    if sys.version_info[0] == 2 and sys.platform != "win32":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return fd


class Forwarder(object):
    """Reads two pipes, those for descriptors 1 and 2, and sends their lines over a channel.

    A thread per pipe reads, in all execution models, since a print to a full pipe would stop all
    greenlets.  One more thread or greenlet sends; a byte in a third pipe wakes it up.
    ``_changed`` guards the queue and the counts.  is_patient: whether it waits and drops nothing.
    """

    def __init__(self, channel: Channel, is_patient: bool, pipes: list[Pipe]) -> None:
        self._is_patient = is_patient
        self._channel = channel
        self._mark = b"\0execnet-end-" + binascii.hexlify(os.urandom(8))
        self._changed = threading.Condition(threading.Lock())
        self._queue: deque[list[Any]] = deque()
        self._bytes = 0  # how many are in the queue
        self._removals = 0  # how often something left the queue
        self._stalled_at = -1  # the count of removals when there was none for too long
        self._drops = False  # whether everything is dropped, as nobody takes it any more
        base = sys.modules[channel.__class__.__module__]
        self._credit = base.load_part("_features.credit").Credit(WINDOW_BYTES)
        self._model = channel.gateway.execmodel
        self._done = self._model.Event()
        wake_fd, self._wake_fd = map(_private, os.pipe())
        self._wake = self._model.fdopen(wake_fd, "rb")
        self._pipes = pipes
        self._readers = len(self._pipes)

    def start(self) -> None:
        """Begin; returns at once."""
        self._model.start(self._send_all, (), "execnet-output-send")
        for pipe in self._pipes:
            name = "execnet-output-%d" % pipe.fd
            thread = threading.Thread(target=self._read, args=(pipe,), name=name)
            thread.daemon = True
            thread.start()

    def finish(self) -> None:
        """Send everything that was written; called at an orderly end, after the last execution.

        It does not wait for a child process that holds a pipe open.
        """
        for file in sys.stdout, sys.stderr:
            try:
                file.flush()
            except Exception:  # it may be any object, or closed
                pass
        pipes, self._pipes = self._pipes, []  # an empty list says that it has finished
        for pipe in pipes:
            pipe.end(self._mark)
        self._done.wait(LONG_S if self._is_patient else FLUSH_S)

    # the threads that read

    def _read(self, pipe: Pipe) -> None:
        splitter = Splitter(self._mark)
        try:
            while not splitter.ended:
                lines = splitter.feed(pipe.read())
                if lines:
                    self._put(pipe, lines)
        finally:
            pipe.close_read()
            with self._changed:
                if pipe.dropped and not self._drops:
                    self._append(pipe, b"")
                self._readers -= 1
                if not self._readers:
                    os.close(self._wake_fd)

    def _put(self, pipe: Pipe, lines: bytes) -> None:
        with self._changed:
            has_room = self._drops or self._wait_for_room(len(lines) + ENTRY_BYTES)
            if self._drops:  # since just now, or since before
                return
            if has_room:
                self._append(pipe, lines)
            else:
                pipe.dropped += lines.count(b"\n")

    def _wait_for_room(self, size: int) -> bool:  # holds _changed
        """Wait until this much fits into the queue; False if nobody makes room."""
        while self._queue and self._bytes + size > BUFFER_BYTES:
            removals = self._removals
            if self._stalled_at == removals:
                return False
            self._changed.wait(STALL_S)
            if self._removals == removals and not self._is_patient:
                self._stalled_at = removals
        return True

    def _append(self, pipe: Pipe, lines: bytes) -> None:  # holds _changed
        last = self._queue[-1] if self._queue else None
        if last and last[0] == pipe.fd and len(last[1]) < LINE_BYTES and not pipe.dropped:
            last[1] += lines
        else:
            self._queue.append([pipe.fd, bytearray(lines), pipe.dropped])
            self._bytes += ENTRY_BYTES
            pipe.dropped = 0
        self._bytes += len(lines)
        if last is None:  # wake the sender, now that there is something for it
            os.write(self._wake_fd, b".")

    # the thread that sends

    def _send_all(self) -> None:
        unsent = {1: 0, 2: 0}  # lines of each stream
        try:
            while self._wake.read(64):
                while self._queue:
                    has_room = self._await_credit()
                    fd, lines, dropped = self._take()
                    if has_room:
                        self._credit.sent += len(lines)
                        self._channel.send((fd, bytes(lines), dropped))
                    else:
                        unsent[fd] += dropped + lines.count(b"\n")
            for fd in unsent:
                if unsent[fd]:
                    self._channel.send((fd, b"", unsent[fd]))
        except ERRORS:
            pass
        finally:
            with self._changed:
                self._drops = True
                self._queue.clear()
                self._changed.notify_all()
            self._wake.close()
            self._close_channel()
            self._done.set()

    def _close_channel(self) -> None:
        try:
            self._channel.close()
        except ERRORS:
            pass

    def _take(self) -> list[Any]:
        with self._changed:
            entry = self._queue.popleft()
            self._bytes -= len(entry[1]) + ENTRY_BYTES
            self._removals += 1
            self._changed.notify_all()
        return entry

    def _await_credit(self) -> bool:
        """Wait for room, or for the end of this gateway; return whether there is room."""
        try:
            while not self._credit.has_room():
                self._credit.taken += self._channel.receive()
        except EOFError:  # from now on nobody reports what was taken
            self._credit.window_bytes = WINDOW_BYTES + LAST_BYTES
        has_room: bool = self._credit.has_room()
        return has_room


def _flush_each_line() -> None:
    """Make Python's own streams write each whole line at once, and as UTF-8.

    Pythons before 3.7, which are started with -u, write everything at once.
    """
    for file in sys.stdout, sys.stderr:
        if hasattr(file, "reconfigure"):
            way: dict[str, object] = {"line_buffering": True, "write_through": False}
            file.reconfigure(encoding="utf-8", errors="backslashreplace", **way)


def serve(channel: Channel, lines: Channel, is_patient: bool = False) -> None:
    """Forward over the channel ``lines``; returns at once, as the main thread is for other code."""
    lines._strconfig = (False, False)
    _flush_each_line()  # first: it asks for the position, and until now this may be a file
    forwarder = Forwarder(lines, is_patient, [Pipe(1), Pipe(2)])
    forwarder.start()
    channel.gateway.before_close = forwarder.finish
