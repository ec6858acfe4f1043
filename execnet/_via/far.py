"""The far half of ``via=``: starts what the coordinator asks for, and forwards its bytes.

This file is shipped to the worker that others go via, with ``far_ends``; it keeps to what
Python 2.7 and today's Python both accept.  It decodes nothing of what it forwards.

One channel carries the bytes of the stream, in both directions.  Each side has at most
``WINDOW_BYTES`` under way, and a positive number reports how many were taken.  So nothing piles up
here, and nobody waits in this gateway's receiver thread.  The coordinator also sends ``CLOSE``,
``DROP`` and, in order to kill, a tuple (id of the worker's process or None).  It gets ``EOF`` after
the last byte.  A second channel carries what the coordinator has to know even while it does not
read: those numbers, the address of a server that it is connected to and, when a process has ended,
(exit status or None, the end of its stderr, why it could not start).

What several workers need crosses the link once: [hash, head, tail] stands for the head, what
``far_kept`` keeps by that hash, and the tail.  Start at ``Forwarder``.
"""

from __future__ import annotations

import select
import threading
from collections import deque

from ..gateway_base import Popen2IO
from . import far_ends, far_kept

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WINDOW_BYTES = 1 << 20  # how much may be on the way in one direction, not reported as taken
CREDIT_BYTES = WINDOW_BYTES // 4  # how much is taken before that is reported
CHUNK_BYTES = 1 << 18  # one item
EOF = 0  # to the coordinator: no more bytes
CLOSE = 0  # to here: no more bytes
DROP = -1  # drop the output from now on

GRACE_S = 6.0  # how long a process may write when its coordinator is gone
END_S = 30.0  # how long it may take to end after that, since it ends others, too
ERRORS = (EnvironmentError, ValueError, select.error)  # ValueError: a file is closed


class Forwarder(object):
    """A process or a connection, and the channel that its bytes come and go through.

    request: a dict of ``args`` (a command) or ``address``, ``stderr`` (whether to keep its last
    lines), ``timeout`` (seconds to connect, None for any time), ``leads_group`` (whether its
    process group is killed with it).  owner: a process that was started already, for
    ``PolledStream``.
    ``on_item`` runs in the receiver thread and never waits; one thread reads, one writes and
    one waits for the end.  ``_lock`` guards the queue: a thread that finds it empty may write.
    """

    def __init__(
        self, channel: Any, news: Any, request: dict[str, Any], owner: Any = None
    ) -> None:
        self._channel = channel
        self._news = news
        self._request = request
        self._model = channel.gateway.execmodel
        self._started = owner
        self._owner: Any = None  # a Process or a Connection, once there is one
        self._stream: Any = None  # the stream to it
        self._lock = threading.Lock() if self._model.has_main_thread else self._model.Lock()
        self._kept = far_kept.kept_of(channel.gateway)
        self._queue: deque[bytes | None] = deque()  # to be written; None: close
        self._queued = self._model.Event()
        self._written = 0  # bytes that were written and not reported yet
        self._sent = 0  # by the reader alone
        self._taken = 0  # by the receiver thread alone
        self._credit = self._model.Event()
        self._drops = False  # whether nobody wants the output
        self._killed = False
        self._read_all = self._model.Event()
        self._ended = self._model.Event()

    def start(self) -> None:
        """Begin; returns at once."""
        self._channel.setcallback(self.on_item, endmarker=None)
        self._model.start(self._run, (), "execnet-via-read")

    # the receiver thread

    def on_item(self, item: Any) -> None:
        """Act on what the coordinator sent; None: it is gone, or needs this no more."""
        if isinstance(item, bytes):
            self._put(item)
        elif isinstance(item, list):
            digest, head, tail = item
            self._put(b"".join([head, self._kept[digest], tail]))
        elif item is None:
            self._on_coordinator_gone()
        elif item == CLOSE:
            self._finish_writing()
        elif item == DROP:
            self._drop()
        elif isinstance(item, tuple):
            self._kill(*item)
        else:
            self._taken += item
            self._credit.set()

    def _put(self, data: bytes) -> None:
        with self._lock:
            if not self._queue and self._stream is not None:
                sent = self._stream.write_now(data)
                self._account(sent)
                data = data[sent:]
            if data:
                self._queue.append(data)
                self._queued.set()

    def _account(self, size: int) -> None:
        """Report to the coordinator, now and then, how much was taken."""
        self._written += size
        if self._written >= CREDIT_BYTES:
            written, self._written = self._written, 0
            self._tell(written)

    def _tell(self, item: Any) -> None:
        self._send(self._news, item)

    def _send(self, channel: Any, item: Any) -> None:
        try:
            channel.send(item)
        except ERRORS:  # the coordinator is gone, which ``on_item`` learns as well
            self._drop()

    def _finish_writing(self) -> None:
        with self._lock:
            self._queue.append(None)
        self._queued.set()

    def _drop(self) -> None:
        self._drops = True
        self._credit.set()

    def _kill(self, worker_pid: int | None = None) -> None:
        """Kill the process and what it started: if it is known, the worker, otherwise all."""
        self._killed = True
        if self._owner is not None and not self._ended.is_set():
            self._owner.kill(worker_pid)
            self._drop()
            self._finish_writing()  # for a process that we may not kill

    def _on_coordinator_gone(self) -> None:
        self._drop()
        self._finish_writing()
        if not self._ended.is_set():
            if self._model.has_main_thread:
                thread = threading.Thread(target=self._see_it_end, name="execnet-via-end")
                thread.daemon = False  # so that the interpreter waits for it when it ends
                thread.start()
            else:
                self._model.start(self._see_it_end)

    def _see_it_end(self) -> None:
        """Give the far side time to end by itself after it has read the end of its input."""
        if not self._read_all.wait(GRACE_S) or not self._ended.wait(END_S):
            self._kill()

    # the other threads

    def _run(self) -> None:
        try:
            self._owner, self._stream = self._open()
        except Exception as exc:
            self._ended.set()
            reason = getattr(exc, "strerror", None) or "%s" % (exc,)
            self._tell((None, b"", far_ends.as_bytes(reason)))
            self._send(self._channel, EOF)
            return
        peer = getattr(self._owner, "peer", b"")
        if peer:
            self._tell(peer)
        if self._killed:
            self._kill()
        self._model.start(self._wait, (), "execnet-via-wait")
        self._model.start(self._write, (), "execnet-via-write")
        self._read()

    def _open(self) -> tuple[Any, Any]:
        owner = self._started
        if owner is None:
            kind = far_ends.Process if self._request["args"] else far_ends.Connection
            owner = kind(self._model, self._request)
        if self._model.has_main_thread and hasattr(select, "poll"):
            return owner, far_ends.PolledStream(owner.read_fd, owner.write_fd)
        return owner, far_ends.WaitingStream(Popen2IO, owner, self._model)

    def _read(self) -> None:
        limit = 65536
        try:
            while True:
                if self._sent - self._taken >= WINDOW_BYTES:
                    self._await_credit()
                data = self._stream.read_some(limit)
                if not data:
                    break
                # A large buffer costs more than a small item, so it is used only when much arrives.
                limit = CHUNK_BYTES if len(data) >= 65536 else 65536
                if not self._drops:
                    self._sent += len(data)
                    self._send(self._channel, data)
        except ERRORS:  # it was reset, which is an end as well
            pass
        self._read_all.set()
        self._stream.close_read()
        self._send(self._channel, EOF)

    def _await_credit(self) -> None:
        while self._sent - self._taken >= WINDOW_BYTES and not self._drops:
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
        self._stream.on_end()
        self._finish_writing()
        self._tell((status, stderr, b""))


def main(channel: Any) -> None:
    """Forward as the next item asks; returns at once, the main thread is for other code."""
    data_channel, news, request = channel.receive()
    Forwarder(data_channel, news, request).start()
