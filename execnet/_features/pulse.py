"""Heartbeats: signs of life to the peer, and a watch over the peer's."""

from __future__ import annotations

import os
import sys

from ..gateway_base import Message, loads_internal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..gateway_base import BaseGateway, WorkerGateway


class Pulse:
    """Signs of life to a peer, and a watch over the peer's.

    Each side sends a frame per interval and looks whether it received anything; one that was
    stopped itself, or does not read, does not take that for the silence of its peer.
    """

    def __init__(self, gateway: BaseGateway, interval_s: float, dead_after_s: float) -> None:
        self._gateway = gateway
        time = __import__("time")
        self._clock: Callable[[], float] = getattr(time, "monotonic", time.time)
        self._due = self._clock() + interval_s
        self.interval_s = interval_s
        self._beats_left = self._beats = max(1, int(dead_after_s / interval_s + 0.999))
        self._heard = -1

    def beat(self) -> bool:
        """Do what is due once per interval; return False when there is nothing left to watch."""
        gateway = self._gateway
        if self.ended():
            return False
        if not gateway._writer._frames:  # otherwise the peer does not even take those
            gateway._post(Message.PING)
        direct = gateway._channelfactory.direct
        now = self._clock()
        # After being stopped, a process beats before it has read what came meanwhile.
        is_late, self._due = now > self._due + self.interval_s, now + self.interval_s
        heard = gateway._heard + (direct.uses if direct is not None else 0)
        silent = heard == self._heard and (gateway._reading or (direct and direct.offered))
        self._heard = heard
        self._beats_left = self._beats_left - (not is_late) if silent else self._beats
        if self._beats_left > 0:
            return True
        self._beats_left = self._beats
        reason = "silent for %g s" % (self._beats * self.interval_s)
        on_silence = getattr(gateway._io, "on_silence", None)
        if on_silence is not None and on_silence(reason):  # another connection may reach it
            return True
        gateway._on_silence(reason)
        return False

    def ended(self) -> bool:
        """Whether there is nothing left to watch."""
        return bool(self._gateway._receiver_done.is_set())

    def run(self) -> None:
        """Beat until the gateway has ended."""
        wait: Any = self._gateway._receiver_done.wait
        try:
            while self.beat() and not wait(self.interval_s):
                pass
        except:  # noqa: E722 - this name may be None as well
            # When Python 2 ends, threads still run while the names of modules become None.
            if wait.__globals__["sys"] is not None:
                raise


def end_worker(gateway: WorkerGateway, reason: str) -> None:
    """End a worker whose coordinator is out of reach; its receiver thread waits for that one."""
    gateway._trace(reason)
    gateway.leave_stream()
    gateway._say_goodbye(1, "its coordinator was " + reason)
    gateway._writer.fail(reason)
    try:
        place = os.getpid(), gateway.id, reason
        sys.stderr.write("[%d] %s ends: its coordinator was %s\n" % place)
        sys.stderr.flush()
    except Exception:  # it is closed, or None
        pass
    gateway._end_executions(gateway._channelfactory._finished_receiving)
    gateway.process.end(gateway)


def on_ping(message: Message, gateway: BaseGateway) -> None:
    """Act on a PING frame: one with two times starts the heartbeats and the watch."""
    if message.data:
        interval_s, dead_after_s = loads_internal(message.data)
        # A coordinator that was stopped, on a laptop that slept, gets the same time to come back.
        pulse = Pulse(gateway, interval_s, 2 * dead_after_s)
        try:
            gateway.execmodel.start(pulse.run, (), "execnet-pulse")
        except RuntimeError:  # no more threads can be started
            gateway._answers_pings = True
    elif gateway._answers_pings:
        gateway._post(Message.PING)
