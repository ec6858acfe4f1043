"""Reads a worker's stream for threads that wait for an answer, next to the receiver thread.

This file is shipped; it keeps to what Python 2.7 and today's Python both accept.  Start at
``Tap.wait``.
"""

from __future__ import annotations

from ..gateway_base import _HEADER, Message, _import

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from typing import Any

    from ..gateway_base import FrameDecoder
if not TYPE_CHECKING:
    deque = __import__("_collections").deque  # without the rest of ``collections``


class Tap(object):
    """Reads the worker's stream for threads that wait for an answer, and finds answers in it.

    One thread at a time reads: the receiver thread, unless that is running user code (a callback
    may wait for the very import that waits here).  What was read is in ``_ready``, for the receiver
    thread.  While a finder waits, CPython lets no other thread begin an import, so the reader must
    not import anything.

    A thread that finds another one reading waits in an inbox of its own; each chunk wakes all of
    them.  An interrupt may come anywhere in a waiting thread, so a read and the append are one
    step, and so is the note of how far the search has come.
    """

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway
        self._next_data = gateway._next_data
        self._read: Callable[[int], bytes] = getattr(gateway._io, "_read", gateway._io.read_some)
        self._lock = gateway.execmodel.Lock()  # held by the thread that reads
        # What was read, each chunk in a tuple of its own, which gives it an identity.
        self._unseen: list[tuple[bytes]] = []
        self._ready: deque[tuple[bytes]] = deque()
        # The last chunk searched; how many bytes to skip in the next ones; or else a frame that is
        # not complete yet, and how many bytes it needs.
        self._seen: tuple[object, int, tuple[bytes, ...], int] = (None, 0, (), 0)
        self._inbox = gateway.execmodel.inbox()  # the receiver thread's
        self._waiting: dict[object, Any] = {}  # inboxes
        self.answers: list[tuple[int, bytes]] = []  # (number of the request, payload)
        self.ended = False
        # The receiver thread is working on these, which begin with a header and were not searched
        # for answers yet; it asks for more after the last whole frame.
        self._look((b"".join(gateway._decoder._chunks),))
        gateway._next_data = self.next_data
        self._load_while_idle = gateway._load_while_idle
        gateway._load_while_idle = int  # the reader would call it
        for name in ("select", "_socket", "errno"):
            _import(name)

    def next_data(self, limit: int, decoder: FrameDecoder) -> bytes:
        """Return the next chunk; in the receiver thread, in place of the gateway's method."""
        while not self._ready:
            if self._gateway._to_load and not self._waiting:
                self._load_while_idle()
            if not self._read_one(self._has_ready, (limit, decoder)):
                self._waiting[self] = self._inbox  # before it looks again
                try:
                    if not (self._ready or self._read_one(self._has_ready, (limit, decoder))):
                        self._inbox.get()
                finally:
                    del self._waiting[self]
        return self._ready.popleft()[0]

    def _has_ready(self) -> bool:
        return bool(self._ready)

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Wait until a condition holds or the stream has ended; read if nobody else does."""
        gateway = self._gateway
        direct = gateway._channelfactory.direct
        me, inbox = object(), gateway.execmodel.inbox()
        self._waiting[me] = inbox
        if direct is not None:
            direct.waiting[me] = _Empty  # so that the receiver thread keeps the stream
            direct.take_back()
        try:
            while not (is_done() or self.ended):
                if not self._read_one(is_done, None):
                    inbox.get()
        finally:
            del self._waiting[me]
            if direct is not None:
                del direct.waiting[me]

    def _read_one(self, is_done: Callable[[], bool], how: tuple[int, FrameDecoder] | None) -> bool:
        """Read a chunk and search it, unless another thread is reading; return whether we did.

        is_done: whether another thread has just read what we want.  how: the arguments of the
        gateway's own function, in the receiver thread.
        """
        (taken,) = map(self._lock.acquire, (False,))  # doc/interrupts.rst, "Locks"
        try:
            if not taken or self._look_at_all() or is_done():
                pass
            elif how is not None:
                self._unseen.append((self._next_data(*how),))
                self._look_at_all()
            elif not self.ended:
                direct = self._gateway._channelfactory.direct
                if direct is not None and direct.chunks:
                    self._unseen += zip(map(direct.chunks.pop, (0,)))
                else:
                    self._gateway._heard += 1
                    self._unseen += zip(map(self._read, (65536,)))  # one step
                self._look_at_all()
        except (EnvironmentError, EOFError, ValueError):
            self.ended = True
            if how is not None:
                raise
        finally:
            if taken:
                self._lock.release()
                for inbox in list(self._waiting.values()):
                    inbox.put(None)
        return bool(taken)

    def _look_at_all(self) -> bool:
        """Search what was read, and hand it over; return whether there was anything."""
        found = bool(self._unseen)
        while self._unseen:
            if self._seen[0] is not self._unseen[0]:
                self._look(self._unseen[0])
            self._ready += map(self._unseen.pop, (0,))
        return found

    def _look(self, entry: tuple[bytes]) -> None:
        """Find the answers in what was read; after an interrupt it is searched again."""
        last, skip, held, need = self._seen
        data = entry[0]
        self.ended |= not (data or last is None)
        if held:
            held += (data,)
            if sum(map(len, held)) < need:
                self._seen = entry, 0, held, need
                return
            data = b"".join(held)
        start, need = min(skip, len(data)), 0
        skip -= start
        while start < len(data):
            need = _HEADER.size
            if start + need > len(data):
                break
            code, id, size = _HEADER.unpack_from(data, start)
            end = start + need + size
            if code == Message.SOURCES and id:
                if end > len(data):
                    need += size
                    break
                payload = data[start + need : end]
                if payload[:1] == b"k":  # before others may be sent it by its hash: ``_via.far``
                    with self._gateway._channelfactory.lock:
                        kept = getattr(self._gateway, "kept", {})
                        self._gateway.kept = kept
                    kept[payload[1:33]] = payload = payload[33:]
                self.answers.append((id, payload))
            start = min(end, len(data))
            skip = end - start
        self._seen = entry, skip, (data[start:],) if start < len(data) else (), need


class _Empty(object):
    """Stands in for a waiting inbox, for direct reads."""

    empty = staticmethod(lambda: True)
