"""What forwards the bytes of one process or connection: its side towards the coordinator.

This file is shipped, see ``_via.far``, where what both ends send is described; it keeps to what
Python 2.7 and today's Python both accept.  The side towards the process is in ``far_polled`` and
``far_threads``.  Start at ``Forwarder``.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import deque

from ..gateway_base import (
    JOINED_BYTES,
    ChannelState,
    Message,
    _pack_bytes_head,
    dumps_internal,
    load_part,
    opcode,
)
from . import far_ends, far_kept
from .far_loop import ERRORS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..gateway_base import Channel
    from .far_ends import Owner, Request

Credit = load_part("_features.credit").Credit

BYTES, STOP = opcode.BYTES, opcode.STOP
WINDOW_BYTES = 1 << 20  # how much may be on the way in one direction, not reported as taken
CHUNK_BYTES = 1 << 18  # one item
SMALL_BYTES = 1 << 16  # read at once until more than that comes: a large buffer costs more
EOF = 0  # to the coordinator: no more bytes
CLOSE = 0  # to here: no more bytes
DROP = -1  # drop the output from now on

GRACE_S = 6.0  # how long a process may write when its coordinator is gone
END_S = 30.0  # how long it may take to end after that, since it ends others, too


class Forwarder(object):
    """A process or a connection, and the channel that its bytes come and go through.

    request: a dict of ``args`` (a command) or ``address``, ``stderr`` (whether to keep its last
    lines), ``timeout`` (seconds to connect, None for any time), ``leads_group`` (whether its
    process group is killed with it).  owner: a process that was started already, for
    ``can_poll``.
    ``on_item`` runs in the receiver thread and never waits.  ``_lock`` guards the queue: a thread
    that finds it empty may write.
    """

    def __init__(
        self, channel: Channel, news: Channel, request: Request, owner: Owner | None = None
    ) -> None:
        self._channel = channel
        self._news = news
        self._request = request
        self._model = channel.gateway.execmodel
        self._started = owner
        self._owner: Any = None  # a Process or a Connection, once there is one
        self._lock = self._model.Lock()
        self._kept = far_kept.kept_of(channel.gateway)
        self._queue: deque[bytes | None] = deque()  # to be written; None: close
        self._input = Credit(WINDOW_BYTES)
        self._output = Credit(WINDOW_BYTES)
        self._drops = False  # whether nobody wants the output
        self._killed = False
        self._read_all = self._model.Event()
        self._ended = self._model.Event()

    def start(self) -> None:
        """Begin; returns at once."""
        self._channel.setcallback(self.on_item, endmarker=None)
        self._model.start(self._run, (), "execnet-via-start")

    # the receiver thread

    def on_item(self, item: object) -> None:
        """Act on what the coordinator sent; None: it is gone, or needs this no more."""
        if isinstance(item, bytes):
            self.put(item)
        elif isinstance(item, list):
            digest, head, tail = item
            self.put(b"".join([head, self._kept[digest], tail]))
        elif item is None:
            self._on_coordinator_gone()
        elif item == CLOSE:
            self._finish_writing()
        elif item == DROP:
            self._drop()
        elif isinstance(item, tuple):
            self._kill(*item)
        else:
            self._output.taken += item
            self._on_credit()

    def put(self, data: bytes) -> None:
        """Write bytes that the coordinator sent; never waits."""
        with self._lock:
            if not self._queue:
                sent = self._write_now(data)
                self._account(sent)
                data = data[sent:]
            if not data:
                return
            is_first = not self._queue
            self._queue.append(data)
        if is_first:
            self._on_queued()

    def _account(self, size: int) -> None:
        """Report to the coordinator, now and then, how much was taken."""
        report = self._input.take(size)
        if report:
            self._tell(report)

    def _tell(self, item: object) -> None:
        """Tell the coordinator even while it does not read; never waits, and never fails."""
        news = self._news
        news.gateway._post(Message.CHANNEL_DATA, news.id, dumps_internal(item))

    def _send(self, item: object) -> None:
        try:
            self._channel.send(item)
        except ERRORS:  # the coordinator is gone, which ``on_item`` learns as well
            self._drop()

    def _send_bytes(self, data: bytes) -> None:
        """Send what the process wrote, as ``_send``, but not in the receiver thread."""
        channel, size = self._channel, len(data)
        if size >= JOINED_BYTES or channel._factory.windows is not None:
            self._send(data)
        elif channel._state in ChannelState.SENDS:
            head = _pack_bytes_head(Message.CHANNEL_DATA, channel.id, size + 6, BYTES, size)
            try:
                channel.gateway._writer.send(head, data + STOP)
            except ERRORS:  # as in ``_send``
                self._drop()
        else:
            self._drop()

    def _finish_writing(self) -> None:
        with self._lock:
            self._queue.append(None)
        self._on_queued()

    def _drop(self) -> None:
        self._drops = True
        self._on_credit()

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

    # the thread that starts it

    def _run(self) -> None:
        try:
            self._owner = self._open()
            peer = getattr(self._owner, "peer", b"")
            if peer:
                self._tell(peer)
            if self._killed:
                self._kill()
            self._forward()
        except Exception as exc:
            if self._owner is not None:  # there can be no more threads
                self._owner.kill(None)
            self._ended.set()
            reason = getattr(exc, "strerror", None) or "%s" % (exc,)
            self._tell((None, b"", far_ends.as_bytes(reason)))
            self._send(EOF)

    def _open(self) -> Any:
        if self._started is not None:
            return self._started
        kind = far_ends.Process if self._request["args"] else far_ends.Connection
        return kind(self._model, self._request)

    # the side towards the process

    @abstractmethod
    def _forward(self) -> None:
        """Forward what comes from both sides, until the process has ended."""

    @abstractmethod
    def _write_now(self, data: bytes) -> int:  # holds _lock
        """Write what can be written without waiting; return how much."""

    @abstractmethod
    def _on_queued(self) -> None:
        """Have the queue written; never waits."""

    @abstractmethod
    def _on_credit(self) -> None:
        """Go on reading: there may be room in the window, or none is needed any more."""
