"""The worker's half of ``execnet top``: reports the state of its process when asked.

This file is shipped; it keeps to what Python 2.7 and today's Python both accept.  Start at ``run``.
"""

from __future__ import annotations

import itertools
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, ModuleType

    from ..gateway_base import Channel, Message, WorkerGateway

TOLD = 5  # pieces of running code
_RUNS = "_execute", "_answer"  # what runs the code of ``remote_exec``, and calls


class Tasks(object):
    """What this process executes; ``_since`` says when each piece of code was first seen."""

    def __init__(self, base: ModuleType) -> None:
        self._package = base.__name__.rpartition(".")[0] + "."
        self._since: dict[tuple[int, int], float] = {}  # by thread and task

    def look(self, now: float) -> list[list[str | float]]:
        """Return [where it is, for how many seconds it has been seen] for each, oldest first."""
        found: list[tuple[str, float]] = []
        seen: dict[tuple[int, int], float] = {}
        for ident, frame in sys._current_frames().items():
            task = self._task_of(frame)
            if task is not None:
                key, place = (ident, task[0]), task[1]
                seen[key] = self._since.get(key, now)
                found.append((place, now - seen[key]))
        self._since = seen
        return [list(item) for item in sorted(found, key=lambda item: -item[1])[:TOLD]]

    def _task_of(self, frame: FrameType | None) -> tuple[int, str] | None:
        """Return what identifies a thread's task, and where it is; None if it has no task."""
        innermost: FrameType | None = None
        outermost: FrameType | None = None
        while frame is not None:
            if frame.f_globals is globals():
                return None
            if not str(frame.f_globals.get("__name__")).startswith(self._package):
                innermost, outermost = innermost or frame, frame
            elif frame.f_code.co_name in _RUNS and innermost is not None:
                name, line = os.path.basename(innermost.f_code.co_filename), innermost.f_lineno
                return id(outermost), "%s:%d %s" % (name, line, innermost.f_code.co_name)
            elif frame.f_code.co_name == "_answer":  # a function in C
                return id(frame), _called(frame.f_locals.get("loaded"))
            else:  # what is further in waits in there for the code
                innermost = None
            frame = frame.f_back
        return None


def _called(request: object) -> str:
    """Return the name of the function that a call is for."""
    if type(request) is not tuple:
        return "call"
    name, positional = request[1:3]
    return str(positional[0] if name.startswith(":") else name)


class Counts(object):
    """Counts the items and calls that come to a gateway, and those that it sends.

    A worker does not count them by itself, since that would slow each of them down.  So while it is
    watched, attributes of the gateway's objects hide their methods: these count, and call the
    method.  Any thread may call them.  The counts of a gateway are those of all who watch it;
    ``watchers``, guarded by the lock of the gateway's channels, says how many do.
    """

    def __init__(self, gateway: WorkerGateway) -> None:
        self.watchers = 0
        self.ignored: set[int] = set()  # the channels of those who watch
        self._gateway = gateway
        self._is_in_part = False
        self._received, self._sent = itertools.count(), itertools.count()
        self._looks = 0
        self._hidden: list[tuple[object, str]] = []

    def look(self) -> list[int]:
        """Return how many were received and sent so far."""
        with self._gateway._channelfactory.lock:
            self._hide_all()
            # Each look counts as well, as there is no other way to read such a count.
            looks, self._looks = self._looks, self._looks + 1
            return [next(self._received) - looks, next(self._sent) - looks]

    def stop(self) -> None:
        """Count no more."""
        hidden, self._hidden = self._hidden, []
        for holder, name in hidden:
            vars(holder).pop(name, None)

    def _hide_all(self) -> None:
        """Hide what is there by now; the calls are made with the first one."""
        factory = self._gateway._channelfactory
        self._hide(factory, "send_item", self._count_sent)
        self._hide(factory, "_local_receive", self._count_item)
        self._hide(factory, "_local_receive_part", self._count_part)
        self._hide(factory.direct, "_load", self._count_read)
        self._set(factory.direct, "int_bytes", 0)  # so that all items pass there
        self._hide(factory.direct, "read_frames", self._count_read_calls)
        self._hide(self._gateway.calls, "on_call", self._count_call)
        # Items that are sent from where they are.
        self._set(self._gateway, "note_sent", lambda: next(self._sent))

    def _hide(self, holder: object, name: str, counted: Callable[..., object]) -> None:
        if holder is not None:
            method = getattr(holder, name)
            self._set(holder, name, lambda *arguments: counted(method, *arguments))

    def _set(self, holder: object, name: str, value: object) -> None:
        if holder is not None and name not in vars(holder):
            setattr(holder, name, value)
            self._hidden.append((holder, name))

    def _count_sent(self, method: Callable[[int, object], object], id: int, item: object) -> None:
        if id not in self.ignored:  # first: whoever gets the item may look at the count
            next(self._sent)
        method(id, item)

    def _count_item(self, method: Callable[[int, bytes], object], id: int, data: bytes) -> None:
        if not self._is_in_part and id not in self.ignored:
            next(self._received)
        method(id, data)

    def _count_part(self, method: Callable[[Message], object], message: Message) -> None:
        self._is_in_part = True  # only the receiver thread is here
        try:
            method(message)
        finally:
            self._is_in_part = False
        if not message.left and self._gateway._channelfactory.coming_part[1]:
            next(self._received)

    def _count_read(self, method: Callable[..., bool], channel: Channel, *rest: object) -> bool:
        is_item = method(channel, *rest)
        if is_item and channel.id not in self.ignored:
            next(self._received)
        return is_item

    def _count_read_calls(
        self, method: Callable[..., list[bytes]], *arguments: object
    ) -> list[bytes]:
        payloads = method(*arguments)
        for _ in payloads:
            next(self._received)
        return payloads

    def _count_call(self, method: Callable[[int, bytes], object], id: int, data: bytes) -> None:
        if data:  # else it comes as an item
            next(self._received)
        method(id, data)


class Items(object):
    """How many items and calls have passed since this began, in all gateways of the process."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._totals = [0, 0]
        self._last: dict[WorkerGateway, list[int]] = {}

    def look(self) -> list[int]:
        """Return how many were received and sent."""
        last, self._last = self._last, {}
        for gateway in _gateways(self._channel):
            counts = self._counts_of(gateway) if gateway not in last else vars(gateway)["counts"]
            now = self._last[gateway] = counts.look()
            before = last.get(gateway, now)
            self._totals = [
                total + n - then for total, n, then in zip(self._totals, now, before)
            ]
        return self._totals

    def _counts_of(self, gateway: WorkerGateway) -> Counts:
        """Return what counts for a gateway, which this now watches."""
        with gateway._channelfactory.lock:
            counts: Counts = vars(gateway).setdefault("counts", Counts(gateway))
            counts.watchers += 1
            if gateway is self._channel.gateway:
                counts.ignored.add(self._channel.id)
        return counts

    def close(self) -> None:
        """Watch no more."""
        last, self._last = self._last, {}
        for gateway in last:
            with gateway._channelfactory.lock:
                counts = vars(gateway)["counts"]
                counts.watchers -= 1
                if not counts.watchers:
                    del vars(gateway)["counts"]
                    counts.stop()


def _gateways(channel: Channel) -> list[WorkerGateway]:
    """Return the gateways of this process."""
    service = getattr(channel.gateway, "service", None)
    return [channel.gateway] if service is None else list(service.clients)


def _memory() -> int | None:
    """Return the bytes of memory that this process has now, or had at its peak."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (EnvironmentError, ValueError, IndexError, AttributeError):
        pass
    try:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    except ImportError:
        return None


def _carried() -> list[int] | None:
    """Return how many bytes this process has read and written; None if the system can't say."""
    try:
        with open("/proc/self/io") as file:
            words = dict(line.split(": ") for line in file)
        return [int(words["rchar"]), int(words["wchar"])]
    except (EnvironmentError, ValueError, KeyError):
        return None


def _unread(channel: Channel) -> int:
    """Return how many items have come here that no code has taken yet."""
    count = 0
    for gateway in _gateways(channel):
        for other in gateway._channelfactory.channels():
            items = other._items
            if items is not None and other is not channel:
                count += items.qsize()
    return count


def run(channel: Channel) -> None:
    """Answer each item with the current state of this process."""
    items = Items(channel)
    try:
        _report(channel, items)
    finally:
        items.close()


def _report(channel: Channel, items: Items) -> None:
    tasks = Tasks(sys.modules[channel.__class__.__module__])
    for _ in channel:
        times = os.times()
        try:
            load: float | None = os.getloadavg()[0]
        except (AttributeError, EnvironmentError):
            load = None
        now = time.time()
        found: dict[str, object] = {"pid": os.getpid(), "cpu": times[0] + times[1], "now": now}
        found["load"] = load
        found.update(memory=_memory(), tasks=tasks.look(now), unread=_unread(channel))
        found["in_bytes"], found["out_bytes"] = _carried() or (None, None)
        found["in_items"], found["out_items"] = items.look()
        channel.send(found)
