"""One run of ``RSync.send``: a walk that serves all targets, each in a thread of its own.

The thread that called ``send`` walks the source and runs everything that the user passed in.
Each target's thread answers its worker's requests, so that a slow one does not hold up the others.
Start at ``Run.execute``.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .._ship.parts import note_loaded
from .._via.blobs import sender_to
from ..gateway_base import Channel
from .far import digests
from .far.apart import place_of
from .far.messages import PATH_MAX
from .far.pump import WAKE, Pump
from .far.rules import Rules
from .far.tree import SourceGone, Tree
from .far.watcher import TargetFailed, Watcher
from .far.wire import CAN_PACK, DIRECTORY, Violation
from .result import RSyncError, Skipped, TargetResult, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import queue
    from collections.abc import Sequence

    from .._endpoint import Carrier
    from ..gateway import Gateway
    from .far.tree import Accept, Step
    from .far.wire import Message, Options, Rule, Settings

    Event = tuple[Any, ...]  # a method, and its arguments

_END = object()  # what a channel's callback gets last


class Hooks(Protocol):
    """What a run reports to its user, in the user's thread."""

    def on_sending(self, target: Target, paths: Sequence[bytes]) -> None: ...
    def on_list(self, target: Target, total: int) -> None: ...
    def on_acks(self, target: Target, sizes: Sequence[int]) -> None: ...
    def on_skipped(self, target: Target, skipped: Skipped) -> None: ...
    def on_finished(self, target: Target) -> None: ...
    def on_progress(self, total: int, done: int, current: str) -> None: ...


def place_here(gateway: Gateway, path: bytes) -> bytes | None:
    """Return a worker's path on this machine, None if it is, or may be, on another one."""
    spec = gateway.spec
    if not spec.popen or spec.python or spec.via:
        return None
    return os.path.realpath(os.path.join(os.fsencode(gateway._rinfo().cwd), path))


def path_inside(path: bytes, directory: bytes) -> bytes | None:
    """Return a path relative to a directory, None if it is not in there."""
    try:
        inner = os.path.relpath(os.path.realpath(path), os.path.realpath(directory))
    except ValueError:  # on another drive of Windows
        return None
    return None if inner.split(os.sep.encode())[0] in (b".", b"..") else inner


def targets_inside(root: bytes, targets: list[Target]) -> frozenset[bytes]:
    """Return paths of targets inside the source, which would never end if they were sent.

    A target that is not known to be there finds that out itself, and ends.
    """
    for target in targets:
        place = place_here(target.gateway, target.options["dest"])
        target.inner = path_inside(place, root) if place else None
    return frozenset(target.inner for target in targets if target.inner is not None)


def share_ways(targets: list[Target]) -> None:
    """Have what several targets need cross each link once, where some go via the same workers."""
    ways: list[list[Carrier | Gateway]] = []
    for target in targets:
        gateway: Carrier | Gateway | None = target.gateway
        way: list[Carrier | Gateway] = []
        while gateway is not None:
            way.append(gateway)
            gateway = gateway.endpoint.carrier
        ways.append(way)
    often = Counter(id(gateway) for way in ways for gateway in way)
    for target, way in zip(targets, ways, strict=True):
        if any(often[id(gateway)] > 1 for gateway in way):
            target.send = sender_to(target.gateway)


class ChannelGone(Exception):
    """Sending on a channel failed; the last item that it got says why."""


class Target:
    """One gateway and directory that the source is sent to; ``result`` is its outcome."""

    def __init__(
        self,
        gateway: Gateway,
        channel: Channel,
        destdir: str,
        finished: Callable[[], object] | None,
        options: Settings,
    ) -> None:
        self.gateway = gateway
        self.channel = channel
        self.send: Callable[[Channel, object], None] = Channel.send
        self.finished = finished
        self.options = options
        self.inner: bytes | None = None  # its path in the source, if that leaves it out
        self.result = TargetResult(gateway, destdir)


def gone_error(exc: SourceGone) -> RSyncError:
    return RSyncError(exc.errno, f"{os.fsdecode(exc.filename)}: {exc.strerror}")


class Gone(Exception):
    """The thread that called ``send`` has left, so nobody answers."""


class _Service(Watcher):
    """Serves one target in a thread of its own.

    Reports to the user go into ``events`` as calls, which the user's thread makes.
    """

    def __init__(self, run: Run, target: Target, tree: Tree) -> None:
        self.target = target
        self._run = run
        self._tree = tree
        self._cursor = 0  # in the run's log
        self.inbox = target.gateway.execmodel.queue.Queue()
        self.total = self.moved_bytes = 0
        self.is_done = False
        self._acks: list[int] | None = []  # held back until the list was reported
        self._started = time.monotonic()

    def start(self) -> None:
        tree = self._tree
        name = os.path.basename(os.path.abspath(tree.root))
        options: Options = {
            **self.target.options, "hashes": digests.costs(), "root": tree.root_entry, "name": name,
            "source": self._run.place, "is_left_out": self.target.inner is not None,
        }  # fmt: skip
        self.target.channel.setcallback(self.inbox.put, endmarker=_END)
        self.target.gateway.execmodel.start(self._main, (options,))

    def _main(self, options: Options) -> None:
        error: BaseException | None = None
        pump = Pump(self._tree, self._supply, self._send, self._receive, self)
        pump.compresses = self.target.options["compress"] and CAN_PACK
        pump.most_per_s = self.target.options["most_per_s"]
        pump.sleep = self.target.gateway.execmodel.sleep
        try:
            try:
                self._send(options)
                pump.run()
                self._wait_for_end()
            except ChannelGone:
                pump.take_rest()
        except TargetFailed as exc:
            error = self._error_of(*exc.args)
        except SourceGone as exc:
            error = gone_error(exc)
        except Violation as exc:
            error = RSyncError(f"{self._place()} broke the protocol: {exc}")
        except BaseException as exc:  # ``send`` tells the user
            error = exc
        finally:
            if error is not None:
                self.target.channel.close()
            self._run.events.put((self._on_end, error))

    def _place(self) -> str:
        return f"{self.target.gateway.id}:{self.target.result.destdir}"

    def _error_of(self, path: bytes, code: int, reason: bytes) -> RSyncError:
        text = f"{self._place()}: {text_of(reason)}"
        text += f" ({os.fsdecode(path)})" if path else ""
        return RSyncError(code, text) if code else RSyncError(text)

    def _supply(self) -> Step | None:
        if self._cursor == len(self._run.log):
            return None
        self._cursor += 1
        return self._run.log[self._cursor - 1]

    def _send(self, message: Message | bytes | Options) -> None:
        try:
            self.target.send(self.target.channel, message)
        except OSError as exc:
            raise ChannelGone(str(exc)) from exc

    def _receive(self) -> object:
        message = self.inbox.get()
        if message is not _END:
            return message
        self.target.channel.waitclose()
        raise EOFError(f"{self._place()} ended before everything was there")

    def _wait_for_end(self) -> None:
        """Wait until the worker is free for other work, even if it does one thing at a time."""
        while self.inbox.get() is not _END:
            pass
        self.target.channel.waitclose()

    # reports of the pump, in the target's thread

    def asked(self, count: int) -> None:
        self.total += count

    def sending(self, paths: Sequence[bytes]) -> None:
        self._run.events.put((self._on_sending, paths))

    def sent(self, count: int) -> None:
        self.target.result.bytes_sent += count

    def moved(self, path: bytes, count: int) -> None:
        self._run.events.put((self._on_moved, path, count))

    def listed(self, total: int) -> None:
        self._run.events.put((self._on_listed, total))

    def done(self, sizes: Sequence[int]) -> None:
        self._run.events.put((self._on_done, sizes))

    def skipped(self, path: bytes, reason: bytes) -> None:
        self._run.events.put((self.on_skipped, path, reason))

    def planned(self, paths: Sequence[bytes], deleted: Sequence[bytes]) -> None:
        for path in paths:
            self.target.result.add("planned", os.fsdecode(path))
        for path in deleted:
            self.target.result.add("planned_deletions", os.fsdecode(path[:PATH_MAX]))

    def plans(self) -> bool:
        return bool(self.target.options["dry_run"])

    def ended(self, unchanged: int, settled: int, deleted: int, refused: Sequence[int]) -> None:
        note_loaded(self.target.gateway, "_rsync.far.target")
        result = self.target.result
        result.take_refusals(*refused)
        result.unchanged, result.settled, result.deleted = unchanged, settled, deleted

    def accept(self, path: bytes) -> bool:
        answer = self.target.gateway.execmodel.queue.Queue()
        self._run.events.put((self._on_accept, path, answer))
        if self._run.is_over:  # set before the calls in ``events`` are made for the last time
            raise Gone
        return bool(answer.get())

    def spared(self, paths: Sequence[bytes]) -> bytes:
        answer = self.target.gateway.execmodel.queue.Queue()
        self._run.events.put((self._on_spared, paths, answer))
        if self._run.is_over:
            raise Gone
        return bytes(answer.get())

    # the same, in the user's thread

    def _on_spared(self, paths: Sequence[bytes], answer: queue.Queue[bytes]) -> None:
        is_over = self._run.is_over
        answer.put(bytes([is_over or not self._run.may_go(path) for path in paths]))

    def _on_accept(self, path: bytes, answer: queue.Queue[bool]) -> None:
        answer.put(not self._run.is_over and self._run.accepts(path))

    def _on_sending(self, paths: Sequence[bytes]) -> None:
        self.target.result.files_sent += len(paths)
        self._run.hooks.on_sending(self.target, paths)

    def _on_moved(self, path: bytes, count: int) -> None:
        self.moved_bytes += count
        self._run.tell_progress(os.fsdecode(path))

    def _on_listed(self, total: int) -> None:
        self._run.hooks.on_list(self.target, total)
        held, self._acks = self._acks or [], None
        self._on_done(held)

    def _on_done(self, sizes: Sequence[int]) -> None:
        if self._acks is not None:
            self._acks.extend(sizes)
            return
        self._run.hooks.on_acks(self.target, sizes)

    def on_skipped(self, path: bytes, reason: bytes) -> None:
        skipped = Skipped(os.fsdecode(path), text_of(reason))
        self.target.result.add("skipped", skipped)
        self._run.hooks.on_skipped(self.target, skipped)

    def _on_end(self, error: BaseException | None) -> None:
        self.is_done = True
        self.target.result.seconds = time.monotonic() - self._started
        self.target.result.error = error
        if error is None:
            self._run.hooks.on_finished(self.target)


class Run:
    """One walk of a source for some targets.  Used by the thread that calls ``execute``."""

    def __init__(
        self,
        root: bytes,
        targets: list[Target],
        accept: Accept | None,
        rules: list[Rule],
        hooks: Hooks,
    ) -> None:
        self._remarks: list[tuple[bytes, bytes]] = []
        try:
            tree = Tree(
                root, accept, lambda path, reason: self._remarks.append((path, reason)),
                Rules(rules) if rules else None,
            )  # fmt: skip
        except OSError as exc:  # whose name is bytes there
            raise OSError(exc.errno, exc.strerror, os.fsdecode(root)) from exc
        self.place = place_of(root) if tree.root_entry[0] == DIRECTORY else None
        tree.hidden = targets_inside(root, targets)
        tree.shared = len(targets) > 1
        share_ways(targets)
        if any(target.options["owners"] for target in targets):
            tree.tell_owners()
        tree.tells_left_out = any(target.options["asks"] for target in targets)
        queue = targets[0].gateway.execmodel.queue
        self._tree = tree
        self._accept = accept
        self._empty = queue.Empty
        self.hooks = hooks
        self.log: list[Step] = []  # of the walk; services read it
        self.events = queue.Queue()  # calls to be made in the user's thread
        self.is_over = False
        self._services = [_Service(self, target, tree) for target in targets]

    def execute(self) -> None:
        """Serve all targets until they end; their errors are in their results."""
        walk = self._tree.walk()
        try:
            for service in self._services:
                service.start()
            for step in walk:
                self.log.append(step)
                for service in self._services:
                    service.inbox.put(WAKE)
                self._handle_events()
            while not all(service.is_done for service in self._services):
                self._handle(*self.events.get())
        except SourceGone as exc:
            self._abandon()
            raise gone_error(exc) from exc
        except BaseException:
            self._abandon()
            raise
        finally:
            walk.close()
            self._services = []  # they refer to the run, and should not wait for a collector

    def _abandon(self) -> None:
        """Let the services end: their channels are closed, their questions answered."""
        self.is_over = True
        for service in self._services:
            service.target.channel.close()
        for function, *arguments in self._waiting_events():
            if function.__name__ in ("_on_accept", "_on_spared"):
                function(*arguments)

    def _waiting_events(self) -> Iterator[Event]:
        while True:
            try:
                yield self.events.get_nowait()
            except self._empty:
                return

    def _handle_events(self) -> None:
        for function, *arguments in self._waiting_events():
            self._handle(function, *arguments)

    def _handle(self, function: Callable[..., object], *arguments: object) -> None:
        function(*arguments)
        while self._remarks:
            remark = self._remarks.pop(0)
            for service in self._services:
                service.on_skipped(*remark)

    def accepts(self, path: bytes) -> bool:
        return self._accept is None or bool(self._accept(path))

    def may_go(self, path: bytes) -> bool:
        """Return whether a path that only a target has may be deleted: it would be sent."""
        try:
            return self.accepts(path)
        except OSError:  # the filter wanted to look at the file itself
            return False

    def tell_progress(self, current: str) -> None:
        total = sum(service.total for service in self._services)
        done = sum(service.moved_bytes for service in self._services)
        self.hooks.on_progress(total, done, current)
