"""Forwards for one process in three threads or greenlets: where no thread can wait for many.

That is so on Windows, among greenlets, and for what is no descriptor.  This file is shipped, see
``_via.far``; it keeps to what Python 2.7 and today's Python both accept.
Start at ``ThreadedForwarder``.
"""

from __future__ import annotations

from ..gateway_base import Popen2IO
from .far_forwarder import CHUNK_BYTES, EOF, SMALL_BYTES, Forwarder
from .far_loop import ERRORS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..gateway_base import Channel
    from .far_ends import Owner, Request


class ThreadedForwarder(Forwarder):
    """Forwards in threads of its own: one reads, one writes, and one waits for the end.

    The thread that has started the process becomes the one that reads.
    """

    def __init__(
        self, channel: Channel, news: Channel, request: Request, owner: Owner | None = None
    ) -> None:
        super(ThreadedForwarder, self).__init__(channel, news, request, owner)
        self._stream: Any = None  # to the process
        self._queued = self._model.Event()
        self._credit = self._model.Event()

    def _forward(self) -> None:
        self._stream = self._open_stream()
        self._model.start(self._wait, (), "execnet-via-wait")
        self._model.start(self._write, (), "execnet-via-write")
        self._read()

    def _open_stream(self) -> Any:
        """Return what reads and writes the bytes."""
        outfile = self._model.fdopen(self._owner.write_fd, "wb")
        infile = self._model.fdopen(self._owner.read_fd, "rb")
        return Popen2IO(outfile, infile, self._model)

    def _write_now(self, data: bytes) -> int:  # holds _lock
        return 0

    def _on_queued(self) -> None:
        self._queued.set()

    def _on_credit(self) -> None:
        self._credit.set()

    def _read(self) -> None:
        limit = SMALL_BYTES
        try:
            while True:
                self._await_credit()
                data = self._stream.read_some(limit)
                if not data:
                    break
                limit = CHUNK_BYTES if len(data) >= SMALL_BYTES else SMALL_BYTES
                if not self._drops:
                    self._output.sent += len(data)
                    self._send(data)
        except ERRORS:  # it was reset, which is an end as well
            pass
        self._read_all.set()
        self._stream.close_read()
        self._send(EOF)

    def _await_credit(self) -> None:
        while not (self._output.has_room() or self._drops):
            self._credit.wait()
            self._credit.clear()

    def _write(self) -> None:
        takes = True
        while True:
            self._queued.wait()
            self._queued.clear()
            while self._queue:
                data = self._queue[0]
                if data is None:
                    self._stream.close_write()
                    self._owner.close_write()
                    return
                if takes:
                    try:
                        self._stream.write(data)
                    except ERRORS:  # it does not read any more, and has ended or is about to
                        takes = False
                self._account(len(data))
                with self._lock:
                    self._queue.popleft()

    def _wait(self) -> None:
        status, stderr = self._owner.wait(self._read_all)
        self._ended.set()
        self._finish_writing()
        self._tell((status, stderr, b""))
