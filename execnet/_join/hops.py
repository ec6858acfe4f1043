"""``fanout=`` of a group that listens: joiners that are reached through other joiners.

The first ``fanout`` joiners keep their connections to here.  A further one is told, over its
authenticated connection, to dial to the worker of another, its *hop*, which waits for it
(``_via.far_dialled``); then it is a worker ``via`` that hop, and its connection to here is closed.
A joiner that does not reach its hop says so, and after ``TRIES`` of that keeps its connection.

Hops are filled level by level, each level as wide as ``fanout`` lets it be.  Start at
``Hops.find``.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from contextlib import suppress
from math import inf

from .._clock import monotonic
from .._log import INFO, note
from .._transports.proof import SocketTalk, read_line
from .._via.stream import FAR, ViaIO
from ..script import socketserver
from .facts import Refused, numeric

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..gateway import Gateway
    from ..gateway_base import ExecModel
    from .facts import Facts

DIALLED = "_via.far_dialled"
TRIES = 2  # hops that a joiner may fail to reach
READY_S = 5.0  # for a hop to begin to wait for a joiner
REACH_S = 10.0  # for the joiner to say whether it has reached it, which it knows after 3
LEVEL_S = 5.0  # how long a joiner waits for the rest of the level that is to lead to it
FIRST_S = 60.0  # the same, while there is none of that level
LISTEN_S = 15.0  # how long a hop waits for a joiner
REST_S = 60.0  # how long nobody is sent to a worker that did not answer
REASON_CHARS = 200  # of why a hop does not wait
DIRECT = 64  # how many may be reached directly, or four times the fanout if that is more


class HopIO(ViaIO):
    """The stream to a joiner that dials to the worker of another gateway."""

    far = DIALLED
    loaded = frozenset([FAR, DIALLED])

    def _finish(self, status: int | None, reason: str) -> None:
        super()._finish(status, reason)
        self.is_connected.set()  # whoever waits for that looks at what it got

    def _close_channels(self) -> None:
        super()._close_channels()
        if self._closed_read and self._ended.is_set():
            # A hop may never end the code that loads the parts, and then has none of them.
            self.loaded = frozenset()
            self._close(self._code)

    def place(self, timeout_s: float) -> tuple[int, str]:
        """Return the port where that worker waits, and the SHA-256 of its certificate.

        Raises TimeoutError if it does not answer, OSError if it can't wait there.
        """
        if not self.is_connected.wait(timeout_s):
            raise TimeoutError(f"{self._via.id} does not answer")
        found = re.fullmatch(rb"(\d{1,5}) ([0-9a-f]{64})", self.peer)
        if found is None:
            reason = self._reason.partition("\n")[0][:REASON_CHARS]  # the hop's own words
            raise OSError(reason or f"{self._via.id} does not wait for a joiner")
        return int(found[1]), found[2].decode("ascii")


class Node:
    """A joiner with a place: a worker, or about to become one; its parent leads to it.

    address, seen: of its end of its connection, as it says and as it is seen from here.  stream:
    through its parent; None without one.
    """

    def __init__(self, facts: Facts, seen: str | None) -> None:
        self.address, self.seen, self.host = facts.address, seen, facts.host
        self.gateway: Gateway | None = None
        self.stream: HopIO | None = None
        self.parent: Node | None = None
        self.level = 0
        self.children = 0  # those that are about to become workers, or are
        self.rests_until = 0.0  # inf: until it has taken what it was sent
        self.unreached: set[object] = set()  # from where it was not reached
        self.was_reached = False
        self.certificate: bytes | bool | None = None

    @property
    def origin(self) -> object:
        """Where its connections come from."""
        return self.seen, self.host

    def places(self) -> list[str]:
        """Return the addresses to dial, those of its own network first."""
        return [one for one in dict.fromkeys([self.address, self.seen]) if one is not None]

    def may_lead_to(self, node: Node) -> bool:
        """Whether another is worth a try."""
        if self.address is None or self.rests_until > monotonic():
            return False
        if node.origin in self.unreached or (len(self.unreached) >= TRIES and not self.was_reached):
            return False
        return self.host == node.host or not socketserver.is_loopback((self.address, 0))


class Hops:
    """Which joiners lead to which; any thread may call.

    fanout: how many are reached from here, and at most from each worker.  changed: guards
    everything, and is notified of changes.
    """

    def __init__(self, fanout: int, execmodel: ExecModel, changed: threading.Condition) -> None:
        self._fanout, self._execmodel, self._changed = fanout, execmodel, changed
        self._nodes: list[Node] = []  # workers
        self._starting: Counter[int] = Counter()  # how many are about to be, by level
        self._streams: set[HopIO | None] = set()  # theirs
        self._is_over = False

    def find(self, talk: SocketTalk, facts: Facts, seen: str, args: list[str], name: str) -> Node:
        """Find a place for a joiner, which waits for an answer; call ``settle`` with it later.

        seen: where its connection comes from.  args, name: of the stream.  It has reached its hop
        if it has a stream, and else waits on.  Raises ``Refused``, OSError if it has left, and
        ValueError for something else that it says.
        """
        node = Node(facts, numeric(seen))
        for tries_left in range(TRIES, -1, -1):
            parent = self._take_place(node, tries_left > 0)
            try:
                if parent is not None:
                    node.stream = self._dialled(talk, node, parent, args, name)
            except BaseException:
                self._give_back(node)
                raise
            if parent is None or node.stream is not None:
                return node
            self._give_back(node)
        raise AssertionError("the last place is one here")

    def settle(self, node: Node, gateway: Gateway | None) -> None:
        """Note that a joiner has become a worker, or None, which leaves nothing of its stream."""
        if gateway is None:
            self._give_back(node)
            if node.stream is not None:
                self._drop(node.stream)
            return
        with self._changed:
            self._streams.discard(node.stream)
            self._starting[node.level] -= 1
            node.gateway = gateway
            self._nodes.append(node)
            self._changed.notify_all()

    def stop(self) -> None:
        """End the streams of those that are about to become workers; holds ``changed``."""
        self._is_over = True
        for stream in self._streams:
            if stream is not None:
                stream.kill()

    def _give_back(self, node: Node) -> None:
        """Give back the place of a joiner that has not become a worker there."""
        with self._changed:
            self._starting[node.level] -= 1
            if node.parent is not None:
                node.parent.children -= 1
            self._changed.notify_all()

    def _take(self, node: Node, parent: Node | None) -> Node | None:  # holds _changed
        node.parent, node.level = parent, 0 if parent is None else parent.level + 1
        self._starting[node.level] += 1
        if parent is not None:
            parent.children += 1
        return parent

    def _count_direct(self) -> int:  # holds _changed
        """Forget those that have ended; return how many are reached from here."""
        ended = [node for node in self._nodes if not _lives(node)]
        for node in ended:
            if node.parent is not None:
                node.parent.children -= 1
        self._nodes = [node for node in self._nodes if node not in ended]
        return self._starting[0] + sum(node.parent is None for node in self._nodes)

    def _take_place(self, node: Node, may_dial: bool) -> Node | None:
        """Wait for a place for a joiner; return the one that is to lead to it, None for none."""
        began = monotonic()
        with self._changed:
            while True:
                if self._is_over:
                    raise Refused("the group was ended", "late")
                direct = self._count_direct()
                if direct < self._fanout:
                    return self._take(node, None)
                found = self._found_for(node) if may_dial else []
                if may_dial and self._await_level(found[0].level if found else None, began):
                    continue
                if found:
                    return self._take(node, found[0])
                if direct < max(DIRECT, 4 * self._fanout):
                    return self._take(node, None)
                raise Refused("it reaches no worker that could lead to it")

    def _await_level(self, level: int | None, began: float) -> bool:  # holds _changed
        """Wait for joiners that are about to become workers; return whether it has waited.

        It waits no more after a while, so that one that takes long holds nobody up for ever.
        level: the one that is to lead to another, if a part of it is there; None: nothing is.
        """
        until = began + (FIRST_S if level is None else LEVEL_S)
        has_waited = False
        while not self._is_over and monotonic() < until:
            if not (sum(self._starting.values()) if level is None else self._starting[level]):
                break
            self._changed.wait(until - monotonic())
            has_waited = True
            if level is None:
                break
        return has_waited

    def _found_for(self, node: Node) -> list[Node]:  # holds _changed
        """Return those that may lead to a joiner, the best first."""
        found = [one for one in self._nodes if one.children < self._fanout]
        found = [one for one in found if one.may_lead_to(node)]
        return sorted(found, key=lambda one: (one.level, one.host != node.host, one.children))

    def _dialled(
        self, talk: SocketTalk, node: Node, parent: Node, args: list[str], name: str
    ) -> HopIO | None:
        """Have a joiner dial to another; return the stream through that, None if it can't."""
        hop, key = parent.gateway, os.urandom(32)
        assert hop is not None
        if parent.certificate is None:
            parent.certificate = _new_certificate()
        request: dict[str, object] = {"args": None, "listen": parent.address, "key": key.hex()}
        request.update(listen_s=LISTEN_S, certificate=parent.certificate)
        ready_by = monotonic() + READY_S
        stream = self._opened(parent, request, [*args, f"hop={hop.id}"], name)
        if stream is None:
            return None
        try:
            with self._changed:
                self._streams.add(stream)
                if self._is_over:
                    raise Refused("the group was ended", "late")
            why = self._awaited_why(talk, node, parent, stream, key, ready_by)
            if why is None:
                return stream
        except BaseException:
            self._drop(stream)
            raise
        self._drop(stream)
        note("gateway", INFO, lambda: f"a joiner is not reached via {hop.id}: {why}", hop.id)
        return None

    def _opened(
        self, parent: Node, request: dict[str, object], args: list[str], name: str
    ) -> HopIO | None:
        """Open a stream through a hop; None if the hop has ended, or does not take what is sent.

        It may read nothing, or be about to get a large item: then a thread waits for that.
        """
        hop = parent.gateway
        assert hop is not None
        opened: list[HopIO | None] = []
        is_late = False

        def run() -> None:
            stream = None
            try:
                with suppress(OSError, EOFError):  # it has just ended
                    stream = HopIO(hop, request, args, name, self._execmodel)
            finally:
                with self._changed:
                    opened.append(stream)
                    if is_late:
                        parent.rests_until = monotonic() + REST_S
                    self._changed.notify_all()
                if is_late and stream is not None:
                    stream.discard()

        try:
            threading.Thread(target=run, name="execnet-join-hop", daemon=True).start()
        except RuntimeError:  # no more threads can be started
            return None
        with self._changed:
            if self._changed.wait_for(lambda: opened or self._is_over, READY_S) and opened:
                return opened[0]
            is_late, parent.rests_until = True, inf
            return None

    def _awaited_why(
        self,
        talk: SocketTalk,
        node: Node,
        parent: Node,
        stream: HopIO,
        key: bytes,
        ready_by: float,
    ) -> str | None:
        """Send a joiner to a hop, and hear why it has not reached it; None: it has."""
        try:
            port, fingerprint = stream.place(max(0.0, ready_by - monotonic()))
        except TimeoutError as exc:
            parent.rests_until = monotonic() + REST_S
            return str(exc)
        except OSError as exc:
            parent.address = None  # it can't be a hop
            return str(exc)
        words = ["hop", str(port), fingerprint, key.hex(), *parent.places()]
        talk.write(" ".join(words).encode("ascii") + b"\n")
        line = read_line(talk, monotonic() + REACH_S)
        if line == b"reached":
            parent.was_reached = True
            return None
        if not line:
            raise ConnectionError("it has left")
        if not line.startswith(b"unreached "):
            raise ValueError("it does not say whether it has reached a worker")
        parent.unreached.add(node.origin)
        return socketserver.printable(line)

    def _drop(self, stream: HopIO) -> None:
        with self._changed:
            self._streams.discard(stream)
        stream.discard()


def _lives(node: Node) -> bool:
    return node.gateway is not None and node.gateway.hasreceiver()


def _new_certificate() -> bytes | bool:
    """Return one that no other hop has; True if only the hop itself can make it."""
    try:
        return socketserver.make_certificate()
    except OSError:
        return True
