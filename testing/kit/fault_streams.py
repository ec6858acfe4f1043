"""Both ends of gateways in one process, with a relay in between that does not do its duty.

A relay closes, stalls, trickles, garbles, doubles or cuts what passes, at one place. No
process is started, so that thousands of faults take a minute. Start at ``StreamGroup``.
"""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

from fault_calls import PROGRAMS

from execnet import Gateway, Group
from execnet._endpoint import Endpoint
from execnet._specs import Settings
from execnet.gateway_base import Channel, ExecModel, Popen2IO, WorkerGateway, _hello
from execnet.gateway_bootstrap import start_over

HEADER = struct.Struct("!bii")
CODES = 16
END_S = 10.0  # how long a worker's code may take to notice that its stream has ended

BYTE_FAULTS = ("close", "close one way", "stall", "pause", "trickle", "garble", "cut", "double")
FRAME_FAULTS = ("drop", "repeat", "swap", "code", "channel", "size", "shorten")
HARMLESS = ("none", "pause", "trickle")  # nothing has to fail
EXACT = (*HARMLESS, "close", "close one way", "stall")  # what arrives is what was sent


@dataclass(frozen=True)
class Fault:
    """What happens, and where in the stream."""

    kind: str
    lane: int = 0  # 0: to the worker, 1: from it
    at: int = 0  # bytes, or frames for those of ``FRAME_FAULTS``, that pass before
    size: int = 1  # bytes that it is about
    seed: int = 0


def random_fault(random: Random) -> Fault:
    """Return a fault; more often at a stream's beginning, where it starts, than far in it."""
    kind = random.choice(("none", *BYTE_FAULTS, *FRAME_FAULTS))
    lane = random.randrange(2)
    if kind in FRAME_FAULTS:
        at = random.choice([random.randrange(4), random.randrange(40)])
    else:
        at = int(2 ** random.uniform(0, 20))
    size = random.choice([1, 1, 4, random.randint(1, 30), random.randint(1, 5000)])
    return Fault(kind, lane, at, size, random.randrange(1 << 30))


class Lane:
    """One direction of a relay: bytes come in, and go out as the fault will have it."""

    def __init__(self, source: int, target: int, fault: Fault | None) -> None:
        self.source, self.target = source, target
        self.closing = False  # after what is pending
        self.broken = False  # the fault says so of all, at once
        self.held_until = 0.0
        self.trickling = 0
        self._pending = bytearray()
        self._fault = fault
        self._random = Random(fault.seed if fault else 0)
        self._seen = self._skip = 0
        self._by_frames = fault is not None and fault.kind in FRAME_FAULTS
        self._unframed = b""
        self._kept = b""  # a frame that has to wait for the next

    def take(self, data: bytes) -> None:
        """Hand in what the source wrote; b"" is its end."""
        if not data:
            self._pending += self._unframed + self._kept
            self._unframed = self._kept = b""
            self.closing = True
        elif self._by_frames:
            self._take_frames(data)
        elif self._fault is None or self._seen + len(data) <= self._fault.at:
            self._pass(data)
            self._seen += len(data)
        else:
            before = max(0, self._fault.at - self._seen)
            fault, self._fault = self._fault, None
            self._pass(data[:before])
            self._happen(fault, data[before:])

    def _pass(self, data: bytes) -> None:
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._pending += data[skipped:]

    def _happen(self, fault: Fault, rest: bytes) -> None:
        size = fault.size
        if fault.kind == "close":
            self.broken = True
        elif fault.kind == "close one way":
            self.closing = True
            return
        elif fault.kind == "stall":
            self.held_until = float("inf")
        elif fault.kind == "pause":
            self.held_until = time.monotonic() + 0.02
        elif fault.kind == "trickle":
            self.trickling = min(size, 500)
        elif fault.kind == "garble":
            rest = self._random.randbytes(min(size, len(rest))) + rest[size:]
        elif fault.kind == "cut":
            self._skip = size
        elif fault.kind == "double":
            rest = rest[:size] + rest
        self._pass(rest)

    def _take_frames(self, data: bytes) -> None:
        data = self._unframed + data
        if self._seen == 0 and data[:1] == b"\0" and b"\n" in data:  # the marker is no frame
            line, _, data = data.partition(b"\n")
            self._pass(line + b"\n")
        while len(data) >= HEADER.size:
            end = HEADER.size + max(0, HEADER.unpack_from(data)[2])
            if len(data) < end:
                break
            self._pass(self._changed(data[:end]))
            data = data[end:]
        self._unframed = data

    def _changed(self, frame: bytes) -> bytes:
        fault, number = self._fault, self._seen
        self._seen += 1
        kept, self._kept = self._kept, b""
        if fault is None or number != fault.at:
            return frame + kept
        code, channel, size = HEADER.unpack_from(frame)
        payload = frame[HEADER.size :]
        if fault.kind == "drop":
            return b""
        if fault.kind == "repeat":
            return frame * 2
        if fault.kind == "swap":
            self._kept = frame
            return b""
        if fault.kind == "code":
            code = self._random.randrange(CODES)
        elif fault.kind == "channel":
            channel = self._random.choice([0, 1, 3, channel + 2, 2**31 - 1, -1])
        elif fault.kind == "size":
            size = self._random.choice([size + 1, max(0, size - 1), 2**30, 2**31 - 1, -1])
        else:
            payload = payload[: self._random.randint(0, len(payload))]
            size = len(payload)
        return HEADER.pack(code, channel, size) + payload

    def wants_more(self) -> bool:
        return self.source >= 0 and not self.closing and len(self._pending) < 1 << 16

    def can_pass(self, now: float) -> bool:
        return self.target >= 0 and bool(self._pending) and now >= self.held_until

    def pass_on(self) -> None:
        """Write what the target takes."""
        count = 1 if self.trickling > 0 else len(self._pending)
        self.trickling -= 1
        try:
            del self._pending[: os.write(self.target, self._pending[:count])]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more
            self.close()

    def close_if_done(self) -> None:
        if self.closing and not self._pending:
            self.close()

    def close(self) -> None:
        for fd in (self.source, self.target):
            if fd >= 0:
                os.close(fd)
        self.source = self.target = -1
        self._pending.clear()


class Relay(threading.Thread):
    """Passes bytes along its lanes until both are closed, or ``stop`` is called."""

    def __init__(self, lanes: list[Lane]) -> None:
        super().__init__(name="relay", daemon=True)
        self._lanes = lanes
        self._woken, self._wake = os.pipe()
        self._stopped = False
        self._lock = threading.Lock()  # of ``_wake``
        for lane in lanes:
            os.set_blocking(lane.source, False)
            os.set_blocking(lane.target, False)

    def stop(self) -> None:
        """Close all, as the death of a process does."""
        self._stopped = True
        with self._lock:
            if self._wake >= 0:
                os.write(self._wake, b"x")

    def run(self) -> None:
        while not self._stopped and any(lane.source >= 0 for lane in self._lanes):
            self._pass_on_what_is_there()
        for lane in self._lanes:
            lane.close()
        with self._lock:
            os.close(self._woken)
            os.close(self._wake)
            self._wake = -1

    def _pass_on_what_is_there(self) -> None:
        now = time.monotonic()
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        wait_s = 1.0
        for lane in self._lanes:
            if lane.wants_more():
                poll.register(lane.source, select.POLLIN)
            if lane.can_pass(now):
                poll.register(lane.target, select.POLLOUT)
            elif lane.held_until > now:
                wait_s = min(wait_s, lane.held_until - now)
        ready = {fd for fd, _ in poll.poll(wait_s * 1000 + 1)}
        for lane in self._lanes:
            if lane.source in ready and lane.wants_more():
                with suppress(BlockingIOError):
                    lane.take(os.read(lane.source, 1 << 16))
            if lane.target in ready or lane.can_pass(now):
                lane.pass_on()
            lane.close_if_done()
        if any(lane.broken for lane in self._lanes):
            self._stopped = True


class HereWorker(WorkerGateway):
    """A worker in a thread of this process, which is not to be interrupted or ended."""

    hung = False

    def _execute(self, channel: Channel, task: Any) -> None:
        if task[0].strip() not in ALLOWED:  # garbled, and not to be run in here
            raise ValueError("not a program of ours")
        super()._execute(channel, task[:4])  # nor is what was compiled

    def _on_source(self, source: bytes) -> None:
        raise ValueError("a garbled frame, not to be run in here")

    def _on_silence(self, reason: str) -> None:
        self._writer.fail(reason)
        self._channelfactory._finished_receiving()
        self._io.relay.stop()

    def _let_executions_finish(self) -> None:
        self._execpool.trigger_shutdown()
        self._execpool.waitall(0.01)

    def _end_executions(self, close: Callable[[], object] | None = None) -> None:
        self._execpool.trigger_shutdown()
        if close is not None:
            close()
        elif self._execpool.active_count():
            self._channelfactory._finished_receiving()
            self._writer.fail("the end")  # in place of the interrupt
        self.hung = not self._execpool.waitall(END_S)


ALLOWED = {program.strip() for program in PROGRAMS.values()}


class HereIO(Popen2IO, Endpoint):
    """The coordinator's stream to a ``HereWorker``, through a relay."""

    args = ("a worker in this process",)
    needs_boot = True

    def __init__(self, fault: Fault, execmodel: ExecModel) -> None:
        there, back, there2, back2 = os.pipe(), os.pipe(), os.pipe(), os.pipe()
        faults = [fault if fault.lane == lane and fault.kind != "none" else None for lane in (0, 1)]
        self.relay = Relay(
            [Lane(there[0], there2[1], faults[0]), Lane(back2[0], back[1], faults[1])]
        )
        fdopen = execmodel.fdopen
        super().__init__(fdopen(there[1], "wb"), fdopen(back[0], "rb"), execmodel)
        self._far: Any = Popen2IO(fdopen(back2[1], "wb"), fdopen(there2[0], "rb"), execmodel)
        self._far.relay = self.relay
        self._thread = threading.Thread(target=self._work, name="here-worker", daemon=True)
        self.worker: HereWorker | None = None
        self.killed = False

    def boot(self, options: dict[str, Any]) -> None:
        """Start the worker."""
        self._options = options
        self.relay.start()
        self._thread.start()

    def _work(self) -> None:
        try:
            self.worker = HereWorker(self._far, self._options["id"])
            self.worker._channelfactory.fast = True
            with suppress(OSError, EOFError):  # the stream ended before it began
                self._far.write(self._options["marker"] + _hello())
                self.worker.serve()
        finally:
            with suppress(OSError, ValueError):
                self._far.close_read()
            with suppress(OSError, ValueError):
                self._far.close_write()

    def kill(self) -> None:
        self.killed = True
        self.relay.stop()

    def poll_until(self, deadline: float) -> int | None:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return None if self._thread.is_alive() else self._status()

    def wait(self) -> int | None:
        self._thread.join(2 * END_S)
        return self._status()

    def _status(self) -> int:
        return -9 if self.killed else 0


class StreamGroup(Group):
    """Starts workers in this process, behind a faulty relay."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault
        self.ios: list[HereIO] = []

    def _start(self, settings: Settings, *others: Any) -> Gateway:
        io = HereIO(self.fault, self.execmodel)
        self.ios.append(io)
        return start_over(io, settings)
