"""Threads that read for many gateways: for those beyond the first ``OWN``.

They go over sockets, or through another gateway (``via=``).  While nothing comes, such a gateway is
parked: its descriptor is polled along with all others, or the receiver thread of the gateway that
it goes via tells of what has come.  One thread polls.  When something has come for a gateway, that
thread leaves the polling to another one and takes the gateway's turn: it is the receiver thread
until all is acted on that has come.  So whatever it runs, and waits for, it keeps nobody else's
bytes.  It stays with a gateway that is within a frame, or that has a callback.

Gateways that go through another have threads apart from those over sockets, which read for their
carriers: they wait for these, also when they end.  For the same reason a gateway that goes through
another and is itself a carrier keeps its own thread.  Start at ``Gateway``.
"""

from __future__ import annotations

import os
import select
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext, suppress

from . import gateway
from ._clock import monotonic
from ._ends import fork
from .gateway_base import get_execmodel, new_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .gateway_base import DirectReads, FrameDecoder, LockLike

OWN = 16  # gateways of both kinds that keep threads of their own, which are a bit faster
OFFERS = 4  # gateways whose streams are left to threads that wait for items, at most
POLLING = 4  # threads that poll, or wait to do so, at most; others end
BUSY = 4  # while more are at work, another one is started only if none of them is back within
BACK_S = 0.01  # this time
END_S = 0.1  # how long a worker may usually take to end after its stream


class _Parked(BaseException):
    """Nothing is left to be read for now."""


class Gateway(gateway.Gateway):
    """A worker that is reached through a socket or another worker, seen from the coordinator.

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
        readers.unpark(self)
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
        if decoder.left or decoder._have or self._needs_thread():
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

    def _needs_thread(self) -> bool:
        """Whether it has a callback that may take its time, or carries others."""
        callbacks = list(self._channelfactory._callbacks.values())
        carries = self._io.carries and self._io.tells_arrivals
        return carries or not all(one.may_be_late for one in callbacks)

    def _park(self, readers: _Readers) -> bool:
        """Have the stream looked after; return False if it is closed already."""
        self._receiver_ident = None
        self._reading = True
        try:
            readers.park(self)
        except (OSError, ValueError) as exc:
            self._ending = EOFError(f"reading failed: {exc}")
            return False
        return True  # by now another thread may have its next turn

    def _on_stream_end(self) -> None:
        if self._readers is not None:
            _seats.remove(self, self._readers)
        super()._on_stream_end()

    def _reap(self) -> None:
        readers, deadline = self._readers, monotonic() + END_S
        if readers is None or self._io.poll_until(deadline) is not None or self._io.has_ended():
            super()._reap()
            return
        readers.count(-1)
        try:
            super()._reap()
        finally:
            readers.count(1)


class _Readers(ABC):
    """Waits for what comes for the gateways that are parked, until there are none.

    ``_lead`` is held by the thread that polls.  ``_lock`` guards the rest.
    """

    _lead: AbstractContextManager[object]

    def __init__(self) -> None:
        self.gateways: dict[object, Gateway] = {}
        self._lock = new_lock()
        self._threads = self._polling = self._busy = 0
        self._awaited: list[LockLike] = []  # locks that are released when a thread comes back
        self._is_over = False
        self._offers: list[None] = [None] * OFFERS

    @abstractmethod
    def park(self, gateway: Gateway) -> None:
        """Have a turn taken when something can be read."""

    def unpark(self, gateway: Gateway) -> None:
        """Note that its turn has begun."""
        gateway.endpoint.unpark()

    @abstractmethod
    def add(self, gateway: Gateway) -> None:
        """Wait for one more gateway."""

    @abstractmethod
    def remove(self, gateway: Gateway) -> None:
        """Wait no more for a gateway; call ``_note_removal`` then."""

    def _note_removal(self) -> None:
        """End all after the last one."""
        if not self.gateways:
            with self._lock:
                self._is_over = True
                self.ring()

    @abstractmethod
    def _wait(self) -> Gateway | None:
        """Wait until something can be read; None at the end."""

    @abstractmethod
    def ring(self) -> None:
        """Wake all that wait, for ever."""

    @abstractmethod
    def close(self) -> None:
        """Release what the system has given; nobody waits any more."""

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


class _Polled(_Readers):
    """Waits for gateways over sockets: polls their descriptors."""

    def __init__(self) -> None:
        super().__init__()
        self._lead = new_lock()
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

    def park(self, gateway: Gateway) -> None:
        """Poll for it, once."""
        self._epoll.modify(gateway.endpoint.shared_fd(), select.EPOLLIN | select.EPOLLONESHOT)

    def add(self, gateway: Gateway) -> None:
        """Poll for one more gateway."""
        fd = gateway.endpoint.shared_fd()
        self.gateways[fd] = gateway
        try:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)
        except BaseException:
            del self.gateways[fd]
            raise

    def remove(self, gateway: Gateway) -> None:
        """Poll no more for a gateway, whose descriptor is still open."""
        fd = gateway.endpoint.shared_fd()
        if self.gateways.pop(fd, None) is not None:
            with suppress(OSError, ValueError):
                self._epoll.unregister(fd)
        self._note_removal()

    def _wait(self) -> Gateway | None:
        ((fd, _),) = self._epoll.poll(-1, 1)
        return self.gateways.get(fd)


class _Told(_Readers):
    """Waits for gateways that go through others: their streams put them into a queue."""

    def __init__(self) -> None:
        super().__init__()
        self._lead = nullcontext()  # any number may wait for a queue
        self._ready = get_execmodel("thread").inbox()

    def ring(self) -> None:
        """Wake all that wait, for ever."""
        self._ready.put(None)

    close = ring  # there is nothing of the system's

    def park(self, gateway: Gateway) -> None:
        """Have it put into the queue, once."""
        gateway.endpoint.park(self._ready.put, gateway)

    def add(self, gateway: Gateway) -> None:
        """Wait for one more gateway."""
        self.gateways[gateway] = gateway
        self.park(gateway)

    def remove(self, gateway: Gateway) -> None:
        """Wait no more for a gateway."""
        self.gateways.pop(gateway, None)
        self._note_removal()

    def _wait(self) -> Gateway | None:
        gateway: Gateway | None = self._ready.get()
        if gateway is None:
            self.ring()
        return gateway


class _Seats:
    """Which thread reads for which gateway; ``_lock`` guards all of it."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._own = 0
        self._readers: dict[type[_Readers], _Readers] = {}

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
        kind = _Told if gateway.endpoint.tells_arrivals else _Polled
        readers = self._readers.get(kind) or kind()
        gateway._readers, gateway._reading = readers, True
        gateway.endpoint.is_shared = True
        try:
            readers.add(gateway)
        except BaseException:
            gateway._readers, gateway._reading = None, False
            gateway.endpoint.is_shared = False
            if not readers.gateways:
                readers.close()
            raise
        self._readers[kind] = readers
        return readers

    def leave(self) -> None:
        """A gateway that has had its own thread has ended."""
        with self._lock:
            self._own -= 1

    def remove(self, gateway: Gateway, readers: _Readers) -> None:
        """A gateway has ended, whose descriptor is still open."""
        with self._lock:
            readers.remove(gateway)
            if not readers.gateways and self._readers.get(type(readers)) is readers:
                del self._readers[type(readers)]

    def _disown(self) -> None:
        """In a forked process: the gateways are the parent's, and so is what polls for them."""
        readers = self._readers
        self.__init__()  # type: ignore[misc]
        for one in readers.values():
            one.close()


_seats = _Seats()
