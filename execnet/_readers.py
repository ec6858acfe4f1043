"""Threads that read for many gateways: for those over sockets beyond the first ``OWN``.

While nothing comes, such a gateway is parked: its descriptor is polled along with all others.  One
thread polls.  When something has come for a gateway, that thread leaves the polling to another one
and takes the gateway's turn: it is the receiver thread until all is acted on that has come.
So whatever it runs, and waits for, it keeps nobody else's bytes.  It stays with a gateway that is
within a frame, or that has a callback.  Start at ``Gateway``.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

from . import gateway
from ._ends import fork
from .gateway_base import get_execmodel, new_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .gateway_base import DirectReads, FrameDecoder

OWN = 16  # gateways that keep a thread of their own, which is some microseconds faster
OFFERS = 4  # gateways whose streams are left to threads that wait for items, at most
POLLING = 4  # threads that poll, or wait to do so, at most; others end
BUSY = 4  # while more are at work, another one is started only if none of them is back within
BACK_S = 0.01  # this time


class _Parked(BaseException):
    """Nothing is left to be read for now."""


class Gateway(gateway.Gateway):
    """A worker that is reached through a socket, seen from the coordinator.

    Its receiver thread is its own, or one of ``_Readers`` for as long as something comes.
    """

    _readers: _Readers | None = None  # None: it has a thread of its own
    _ending: BaseException | None = None  # what its last turn came to

    def _run_receiver(self) -> None:
        readers = _seats.take(self)
        if readers is not None:
            readers.need_thread()
            return
        try:
            super()._run_receiver()
        finally:
            _seats.leave()

    def take_turn(self, readers: _Readers) -> None:
        """Act on what has come, then park the gateway, or see to its end."""
        self._receiver_ident = self._get_ident()
        try:
            self._receive_what_is_there()
        except _Parked:
            if self._park(readers):
                return
        except BaseException as exc:  # ``_run_receiver`` meets it in its place
            self._ending = exc
        super()._run_receiver()

    def _receive_what_is_there(self) -> None:
        data = b""
        if not self.handshake.marker:
            data = self._read_some(65536)
            if not data:
                raise EOFError("the stream ended")
        super()._receive_until_end(data)

    def _receive_until_end(self, data: bytes = b"") -> None:
        ending, self._ending = self._ending, None
        try:
            if ending is not None:
                raise self._explained(ending)
        finally:
            del ending  # which has this frame in its traceback
        super()._receive_until_end(data)

    def _skip_noise(self) -> bytes:
        data = super()._skip_noise()
        self.handshake.marker = b""
        return data

    def _next_data(self, limit: int, decoder: FrameDecoder) -> bytes:
        factory, readers = self._channelfactory, self._readers
        if readers is None:
            return super()._next_data(limit, decoder)
        callbacks = list(factory._callbacks.values())
        if decoder.left or decoder._have or not all(one.may_be_late for one in callbacks):
            readers.count(-1)
            try:
                return super()._next_data(limit, decoder)
            finally:
                readers.count(1)
        direct = factory.direct
        if direct is not None:
            if direct.served and self._nobody_else_waits(direct):
                readers.offer(direct)
            if direct.chunks:
                return direct.next_chunk()
        try:
            return self._io.read_kept(limit)
        except BlockingIOError:
            raise _Parked from None

    def _park(self, readers: _Readers) -> bool:
        """Have the stream polled; return False if it is closed already."""
        self._receiver_ident = None
        self._reading = True
        try:
            readers.poll(self._io.shared_fd())
        except (OSError, ValueError) as exc:
            self._ending = EOFError(f"reading failed: {exc}")
            return False
        return True  # by now another thread may have its next turn

    def _on_stream_end(self) -> None:
        if self._readers is not None:
            _seats.remove(self, self._readers)
        super()._on_stream_end()


class _Readers:
    """Polls for the gateways that are parked, until there are none.

    ``_lead`` is held by the thread that polls.  ``_lock`` guards the rest.
    """

    def __init__(self) -> None:
        self.gateways: dict[int, Gateway] = {}  # by descriptor
        self._lead, self._lock = new_lock(), new_lock()
        self._threads = self._polling = self._busy = 0
        self._awaited: list[Any] = []  # locks that are released when a thread comes back
        self._is_over = False
        self._offers: list[None] = [None] * OFFERS
        self._epoll = select.epoll()
        self._heard, self._bell = os.pipe()  # its end wakes all that poll
        self._epoll.register(self._heard, select.EPOLLIN)
        if min(self._epoll.fileno(), self._heard, self._bell) <= 2:
            self.close()
            raise OSError("descriptors of stdin, stdout or stderr are free")

    def close(self) -> None:
        """Close the descriptors."""
        self._epoll.close()
        os.close(self._heard)
        self.ring()

    def ring(self) -> None:
        """Wake all that poll, for ever."""
        bell, self._bell = self._bell, -1
        if bell >= 0:
            os.close(bell)

    def poll(self, fd: int) -> None:
        """Have a turn taken when something can be read."""
        self._epoll.modify(fd, select.EPOLLIN | select.EPOLLONESHOT)

    def add(self, fd: int, gateway: Gateway) -> None:
        """Poll for one more gateway."""
        self.gateways[fd] = gateway
        try:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)
        except BaseException:
            del self.gateways[fd]
            raise

    def remove(self, fd: int) -> None:
        """Poll no more for a gateway; the last one ends all."""
        if self.gateways.pop(fd, None) is not None:
            with suppress(OSError, ValueError):
                self._epoll.unregister(fd)
        if not self.gateways:
            with self._lock:
                self._is_over = True
                self.ring()

    def offer(self, direct: DirectReads) -> None:
        """Leave a stream to the thread that waits for its items, unless many are."""
        direct.served = False
        try:
            self._offers.pop()
        except IndexError:
            return
        self.count(-1)
        try:
            direct.offer()
        except ImportError:  # nothing can be imported any more
            pass
        finally:
            self.count(1)
            self._offers.append(None)

    def count(self, change: int) -> None:
        """Count the threads that will be back as soon as they have acted on what has come."""
        with self._lock:
            self._busy += change

    def need_thread(self) -> None:
        """Have a thread poll; if there can be no more, this one does."""
        with self._lock:
            if self._polling >= POLLING:
                return
        try:
            self._start()
        except RuntimeError:
            self._run()

    def _run(self) -> None:
        with self._lock:
            if self._is_over:
                return
            self._threads += 1
        try:
            while self._take_turn():
                pass
        finally:
            with self._lock:
                self._threads -= 1
                if self._is_over and not self._threads:
                    self.close()

    def _take_turn(self) -> bool:
        """Poll, then take the turn of a gateway; False if enough other threads poll."""
        with self._lock:
            if self._is_over or self._polling >= POLLING:
                return False
            self._polling += 1
            while self._awaited:
                self._awaited.pop().release()
        with self._lead:
            gateway = self._wait()
            with self._lock:
                self._polling -= 1
                self._busy += 1
                is_alone = not self._polling
        try:
            if gateway is not None:
                if is_alone and not self._is_one_back():
                    with suppress(RuntimeError):  # there can be no more: nobody polls meanwhile
                        self._start()
                gateway.take_turn(self)
        finally:
            self.count(-1)
        return True

    def _is_one_back(self) -> bool:
        """Whether another thread polls, or does so within a moment."""
        back = new_lock()
        back.acquire()
        with self._lock:
            if self._polling or self._busy <= BUSY:
                return self._polling > 0
            self._awaited.append(back)
        return bool(back.acquire(True, BACK_S))

    def _start(self) -> None:
        get_execmodel("thread").start(self._run, (), "execnet-reader")

    def _wait(self) -> Gateway | None:
        """Wait until something can be read; None at the end."""
        ((fd, _),) = self._epoll.poll(-1, 1)
        return self.gateways.get(fd)


class _Seats:
    """Who reads for a gateway; ``_lock`` guards all of it."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._own = 0
        self._readers: _Readers | None = None

    def take(self, gateway: Gateway) -> _Readers | None:
        """Return what reads for a gateway from now on; None: the calling thread has to."""
        fork.register(self)  # in a fork, too, which has forgotten it
        with self._lock:
            if self._own >= OWN:
                with suppress(OSError, ValueError):  # no descriptor is left, or it is closed
                    return self._add(gateway)
            self._own += 1
            return None

    def _add(self, gateway: Gateway) -> _Readers:
        readers = self._readers or _Readers()
        fd = gateway._io.shared_fd()
        gateway._readers, gateway._reading = readers, True
        gateway._io.is_shared = True
        try:
            readers.add(fd, gateway)
        except BaseException:
            gateway._readers, gateway._reading = None, False
            gateway._io.is_shared = False
            if self._readers is None:
                readers.close()
            raise
        self._readers = readers
        return readers

    def leave(self) -> None:
        """A gateway that has had its own thread has ended."""
        with self._lock:
            self._own -= 1

    def remove(self, gateway: Gateway, readers: _Readers) -> None:
        """A gateway has ended, whose descriptor is still open."""
        with self._lock:
            readers.remove(gateway._io.shared_fd())
            if not readers.gateways and self._readers is readers:
                self._readers = None

    def _disown(self) -> None:
        """In a forked process: the gateways are the parent's, and so is what polls for them."""
        readers = self._readers
        self.__init__()  # type: ignore[misc]
        if readers is not None:
            readers.close()


_seats = _Seats()
