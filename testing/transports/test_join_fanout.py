"""``fanout=`` of a group that listens: joiners that are reached through other joiners."""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import socket
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from interpreters import found
from processes import is_gone
from test_join import KEY, Speaker, Start, command, ended, start  # noqa: F401 - fixtures
from tools import BOUND_S, wait_until
from workers import ask

import execnet
from execnet import Gateway, Group, RSync, WorkerDied
from execnet._join import far, hops
from execnet._join.facts import Facts
from execnet._transports.tls import Tls
from execnet._via import far_dialled
from execnet.gateway_base import get_execmodel
from execnet.script import socketserver

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command is for a Unix shell")

HERE = json.dumps({"host": socket.gethostname()}).encode() + b"\n"
PID = "import os; channel.send(os.getpid())"
Listen = Callable[..., None]


@pytest.fixture
def listen(group: Group, pem: str) -> Listen:
    """A function that has ``group`` listen, for those that have ``KEY``."""

    def listen(fanout: int, **options: Any) -> None:
        group.listen("127.0.0.1:0", KEY, pem, fanout=fanout, **options)

    return listen


def via_of(gateways: list[Gateway]) -> list[str | None]:
    return [gateway.spec.via for gateway in gateways]


class TestTree:
    def test_further_joiners_are_reached_through_the_first(
        self,
        group: Group,
        listen: Listen,
        start: Start,  # noqa: F811
    ) -> None:
        listen(2, count=7)
        joined: queue.Queue[Gateway] = queue.Queue()
        group.on_join(joined.put)
        joiners = [start(command(group), PMI_RANK=str(rank)) for rank in range(7)]
        gateways = group.wait_for(7, BOUND_S)
        leads = Counter(via_of(gateways))
        assert leads.pop(None) == 2
        assert sorted(leads.values()) == [1, 2, 2]
        levels = [0 if one.spec.via is None else 1 for one in gateways]
        for number, gateway in enumerate(gateways):
            if gateway.spec.via is not None:
                levels[number] += levels[gateways.index(group[gateway.spec.via])]
        assert sorted(levels) == [0, 0, 1, 1, 1, 1, 2]
        assert {gateway._rinfo().rank for gateway in gateways} == set(range(7))
        assert len({gateway._rinfo().join_id for gateway in gateways}) == 7
        assert {joined.get(timeout=BOUND_S).id for _ in range(7)} == {one.id for one in group}
        text = os.urandom(150_000).hex()
        for gateway in gateways:
            assert ask(gateway, "channel.send(channel.receive())", text) == text
        pids = list(group.remote_exec(PID).receive_each())
        assert len(set(pids)) == 7
        said = "execnet join: too late: the group has the 7 workers it wants\n"
        assert ended(start(command(group))) == (0, said)
        group.terminate(timeout=BOUND_S)
        assert [ended(joiner) for joiner in joiners] == [(0, "")] * 7
        wait_until(lambda: all(map(is_gone, pids)), BOUND_S)

    def test_every_python_leads_to_others_and_is_led_to(
        self,
        group: Group,
        listen: Listen,
        start: Start,  # noqa: F811
    ) -> None:
        listen(1)
        gateways: list[Gateway] = []
        for count, python in enumerate([*found(), found()[0]], 1):
            start(group.join_command(python=shlex.quote(python.path)))
            gateways = group.wait_for(count, BOUND_S)
        assert via_of(gateways) == [None, *(one.id for one in gateways[:-1])]
        text = os.urandom(150_000).hex()
        assert ask(gateways[-1], "channel.send(channel.receive())", text) == text

    def test_what_all_need_crosses_the_link_to_a_hop_once(
        self,
        group: Group,
        listen: Listen,
        start: Start,  # noqa: F811
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        sent: list[int] = []
        encrypt = Tls.encrypt

        def counted(tls: Tls, data: Any, counts: list[int]) -> None:
            encrypt(tls, data, counts)
            sent.append(counts[-1])

        monkeypatch.setattr(Tls, "encrypt", counted)
        listen(1)
        costs = []
        for count in 1, 2, 3:
            start(command(group))
            gateways = group.wait_for(count, BOUND_S)
            ask(gateways[-1], "channel.send(channel.receive())", 5)
            costs.append(sum(sent))
            del sent[:]
        assert costs[2] < costs[0] / 4  # the source, which the first two have
        (tmp_path / "source").mkdir()
        size = 1 << 20
        (tmp_path / "source" / "file").write_bytes(os.urandom(size))
        rsync = RSync(str(tmp_path / "source"), verbose=False)
        for gateway in gateways:
            rsync.add_target(gateway, str(tmp_path / gateway.id))
        rsync.send()
        assert size < sum(sent) < 1.2 * size

    def test_a_hop_makes_its_certificate_where_that_is_not_possible_here(
        self,
        group: Group,
        listen: Listen,
        start: Start,  # noqa: F811
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        listen(1)
        start(command(group))
        (hop,) = group.wait_for(1, BOUND_S)
        monkeypatch.setenv("PATH", "")
        start(command(group))
        assert via_of(group.wait_for(2, BOUND_S)) == [None, hop.id]

    def test_code_that_runs_in_a_hop_holds_nobody_up(
        self,
        group: Group,
        listen: Listen,
        start: Start,  # noqa: F811
    ) -> None:
        listen(1)
        start(command(group))
        (hop,) = group.wait_for(1, BOUND_S)
        channel = hop.remote_exec("channel.receive()")
        start(command(group))
        _, behind = group.wait_for(2, BOUND_S)
        assert ask(behind, "channel.send(channel.receive())", 5) == 5
        channel.send(None)
        channel.waitclose(BOUND_S)

    def test_a_hop_that_does_not_answer_is_left_alone_for_a_while(
        self,
        group: Group,
        listen: Listen,
        start: Start,  # noqa: F811
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        place, asked = hops.HopIO.place, []

        def noted(io: hops.HopIO, timeout_s: float) -> tuple[int, str]:
            asked.append(io._via.id)
            return place(io, 0.1 if len(asked) == 1 else timeout_s)

        monkeypatch.setattr(hops.HopIO, "place", noted)
        listen(1, options="execmodel=main_thread_only")
        start(command(group))
        (hop,) = group.wait_for(1, BOUND_S)
        channel = hop.remote_exec("channel.send(1); channel.receive()")
        assert channel.receive(BOUND_S) == 1
        for count in 2, 3:
            start(command(group))
            gateways = group.wait_for(count, BOUND_S)
        assert via_of(gateways) == [None, None, gateways[1].id]
        assert asked == [hop.id, gateways[1].id]
        channel.send(None)
        channel.waitclose(BOUND_S)

    def test_a_rank_that_was_behind_a_hop_is_replaced(
        self,
        group: Group,
        listen: Listen,
        start: Start,  # noqa: F811
    ) -> None:
        mpi = {"OMPI_COMM_WORLD_SIZE": "8", "PMIX_NAMESPACE": "7"}
        listen(1)
        start(command(group), OMPI_COMM_WORLD_RANK="0", **mpi)
        group.wait_for(1, BOUND_S)
        joiner = start(command(group), OMPI_COMM_WORLD_RANK="1", **mpi)
        hop, behind = group.wait_for(2, BOUND_S)
        again = start(command(group), OMPI_COMM_WORLD_RANK="1", **mpi)
        said = f"execnet join: rank 1 of MPI job 7 has joined already: {behind.id}\n"
        assert ended(again) == (1, said)
        joiner.kill()
        wait_until(lambda: not behind.hasreceiver(), BOUND_S)
        start(command(group), OMPI_COMM_WORLD_RANK="1", **mpi)
        assert via_of(group.wait_for(2, BOUND_S)) == [None, hop.id]

    @pytest.mark.parametrize(
        ("fanout", "options", "error"),
        [
            (0, "", ValueError),
            (True, "", TypeError),
            ("2", "", TypeError),
            (2, "execmodel=gevent", ValueError),
        ],
    )
    def test_what_can_be_no_fanout_is_refused(
        self,
        group: Group,
        pem: str,
        fanout: Any,
        options: str,
        error: type[Exception],
    ) -> None:
        with pytest.raises(error, match="fanout="):
            group.listen("127.0.0.1:0", KEY, pem, options=options, fanout=fanout)
        with pytest.raises(ValueError, match="not listening"):
            group.join_command()


class TestEnds:
    def test_a_dead_hop_costs_those_behind_it_and_its_place_is_taken(
        self,
        group: Group,
        listen: Listen,
        start: Start,  # noqa: F811
    ) -> None:
        listen(2)
        joiners = {}
        for count in range(1, 5):
            joiner = start(command(group))
            joiners[group.wait_for(count, BOUND_S)[-1].id] = joiner
        first, second, third, fourth = group.wait_for(4)
        assert via_of([third, fourth]) == [first.id, second.id]
        os.kill(ask(first, PID), signal.SIGKILL)
        with pytest.raises(WorkerDied) as caught:
            third.newchannel().receive(BOUND_S)
        assert (caught.value.id, caught.value.hop) == (third.id, first.id)
        assert [ended(joiners[one.id])[0] for one in (first, third)] == [128 + 9, 0]
        assert ask(fourth, "channel.send(channel.receive())", 5) == 5
        for count in 3, 4:
            start(command(group))
            wait_until(lambda: len(group._get_joins().live()) == count, BOUND_S)  # noqa: B023
        assert via_of(group.wait_for(4)[2:]) == [None, group.wait_for(4)[2].id]

    def test_of_a_worker_behind_a_hop_is_told_on_both_sides(
        self,
        group: Group,
        listen: Listen,
        start: Start,  # noqa: F811
    ) -> None:
        listen(1)
        start(command(group), PMI_RANK="0")
        group.wait_for(1, BOUND_S)
        joiner = start(command(group), PMI_RANK="4")
        hop, behind = group.wait_for(2, BOUND_S)
        channel = behind.remote_exec("import os; os.kill(os.getpid(), 9)")
        place = rf"worker {behind.id} \(rank 4 of MPI, on {socket.gethostname()}\) died"
        with pytest.raises(WorkerDied, match=f"{place}, killed by SIGKILL") as caught:
            channel.waitclose(BOUND_S)
        assert (caught.value.hop, behind.exitcode) == ("", -9)
        assert ended(joiner)[0] == 128 + 9
        assert ask(hop, "channel.send(channel.receive())", 5) == 5

    def test_of_a_group_does_not_wait_for_one_that_is_at_a_hop(
        self,
        group: Group,
        listen: Listen,
        start: Start,  # noqa: F811
    ) -> None:
        listen(1)
        start(command(group))
        group.wait_for(1, BOUND_S)
        with Speaker(str(group._get_joins().ticket)) as silent:
            assert silent.say(HERE).startswith("hop ")
            group.terminate(timeout=5)


class TestUnreached:
    @pytest.mark.parametrize("way", ["port", "certificate"])
    def test_one_that_reaches_no_hop_is_reached_from_here(
        self,
        group: Group,
        listen: Listen,
        start: Start,  # noqa: F811
        monkeypatch: pytest.MonkeyPatch,
        way: str,
    ) -> None:
        place, written = hops.HopIO.place, []
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))

            def elsewhere(io: hops.HopIO, timeout_s: float) -> tuple[int, str]:
                port, fingerprint = place(io, timeout_s)
                written.append(port)
                if way == "port":
                    return unused.getsockname()[1], fingerprint
                return port, "0" * 64 if way == "certificate" else fingerprint

            monkeypatch.setattr(hops.HopIO, "place", elsewhere)
            listen(1)
            for count in 1, 2, 3, 4:
                start(command(group))
                group.wait_for(count, BOUND_S)
            assert via_of(group.wait_for(4)) == [None] * 4
        # The second fails at the first, the third at the second, and so on: all come from here.
        assert len(written) == 3
        assert ask(group.wait_for(4)[3], "channel.send(channel.receive())", 5) == 5

    def test_there_is_a_limit_to_that(
        self,
        group: Group,
        listen: Listen,
        start: Start,  # noqa: F811
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(hops, "DIRECT", 1)
        monkeypatch.setattr(hops.Node, "may_lead_to", lambda self, node: False)
        listen(1)
        for count in 1, 2, 3, 4:
            start(command(group))
            group.wait_for(count, BOUND_S)
        said = "execnet join: it reaches no worker that could lead to it\n"
        assert ended(start(command(group))) == (1, said)
        with pytest.raises(execnet.TimeoutError, match=r"4 of 5 .* it reaches no worker"):
            group.wait_for(5, 0)

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (b"", "it has left"),
            (b"perhaps\n", "it does not say whether it has reached a worker"),
        ],
    )
    def test_one_that_does_not_go_there_leaves_no_trace(
        self,
        group: Group,
        listen: Listen,
        start: Start,  # noqa: F811
        answer: bytes,
        reason: str,
    ) -> None:
        listen(1)
        start(command(group))
        (hop,) = group.wait_for(1, BOUND_S)
        with Speaker(str(group._get_joins().ticket)) as speaker:
            assert speaker.say(HERE).startswith("hop ")
            speaker.sock.sendall(answer)
            if not answer:
                speaker.sock.shutdown(socket.SHUT_RDWR)
            wait_until(lambda: group._get_joins().reasons, BOUND_S)
        assert list(group._get_joins().reasons) == [f"127.0.0.1: {reason}"]
        start(command(group))
        assert via_of(group.wait_for(2, BOUND_S)) == [None, hop.id]

    @pytest.mark.parametrize("address", ["no address", "localhost", "10.0.0.1 -x", 5])
    def test_what_a_joiner_says_is_an_address(
        self, group: Group, listen: Listen, address: object
    ) -> None:
        listen(1)
        with Speaker(str(group._get_joins().ticket)) as speaker:
            facts = json.dumps({"address": address}).encode() + b"\n"
            assert speaker.say(facts).startswith("error its address is ")


class FakeGateway:
    """A worker that lives, as far as ``hops`` wants to know."""

    lives = True

    def hasreceiver(self) -> bool:
        return self.lives


class Planned(hops.Hops):
    """Joiners of a test's own, each of which reaches the hop that it is sent to."""

    def __init__(self, fanout: int) -> None:
        super().__init__(fanout, get_execmodel("thread"), threading.Condition())

    def _dialled(self, talk: Any, node: hops.Node, *args: Any) -> Any:
        return object()

    def begin(self, host: str = "here", address: str = "127.0.0.1") -> hops.Node:
        said = json.dumps({"host": host, "address": address}).encode()
        return self.find(cast("Any", None), Facts("id", said), "127.0.0.1", [], "")

    def join(self, **options: str) -> hops.Node:
        node = self.begin(**options)
        self.settle(node, cast("Any", FakeGateway()))
        return node


class TestPlan:
    def test_each_level_is_filled_evenly_before_the_next(self) -> None:
        plan = Planned(2)
        nodes = [plan.join() for _ in range(20)]
        assert [node.level for node in nodes] == [0] * 2 + [1] * 4 + [2] * 8 + [3] * 6
        assert max(Counter(node.parent for node in nodes[2:]).values()) == 2
        assert max(Counter(node.parent for node in nodes[-6:]).values()) == 1

    def test_one_that_comes_early_waits_for_the_rest_of_the_level(self) -> None:
        plan = Planned(2)
        plan.join()
        late = plan.begin()
        found: list[hops.Node] = []
        threads = [threading.Thread(target=lambda: found.append(plan.join())) for _ in range(2)]
        for thread in threads:
            thread.start()
        plan.settle(late, cast("Any", FakeGateway()))
        for thread in threads:
            thread.join(BOUND_S)
        assert len({node.parent for node in found}) == 2

    def test_one_that_never_comes_holds_nobody_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hops, "LEVEL_S", 0.01)
        plan = Planned(2)
        first = plan.join()
        plan.begin()
        assert plan.join().parent is first

    def test_the_place_of_one_that_has_ended_or_not_come_is_free(self) -> None:
        plan = Planned(1)
        first = plan.join()
        second = plan.join()
        assert second.parent is first
        cast("Any", second.gateway).lives = False
        third = plan.begin()
        assert third.parent is first
        third.stream = None
        plan.settle(third, None)
        assert plan.join().parent is first
        cast("Any", first.gateway).lives = False
        assert plan.join().parent is None

    def test_the_same_host_is_preferred_and_loopback_leads_nowhere_else(self) -> None:
        plan = Planned(2)
        here, there = plan.join(), plan.join(host="there", address="::ffff:192.0.2.1")
        assert (here.places(), there.places()) == (["127.0.0.1"], ["192.0.2.1", "127.0.0.1"])
        assert plan.join().parent is here
        assert plan.join().parent is here
        assert plan.join().parent is there
        plan = Planned(1)
        plan.join()
        assert plan.join(host="elsewhere").parent is None

    def test_one_that_several_hosts_do_not_reach_is_tried_no_more(self) -> None:
        plan = Planned(1)
        hop = plan.join(address="192.0.2.1")
        hop.unreached.add(("127.0.0.1", "a"))
        assert plan.join(host="a").parent is None
        plan = Planned(1)
        hop = plan.join(address="192.0.2.1")
        hop.unreached.update({"a", "b"})
        assert plan.join(host="c").parent is None


class Dialled:
    """What waits at a hop for a joiner, in this process; ``inner`` is the coordinator's side."""

    def __init__(self, pem: str, listen_s: float = BOUND_S) -> None:
        self.key = os.urandom(32)
        text = Path(pem).read_text()
        request = {"listen": "127.0.0.1", "key": self.key.hex(), "certificate": text}
        self.owner = far_dialled.Dialled({**request, "listen_s": listen_s})
        port, fingerprint = self.owner.peer.split()
        self.words = [port.decode(), fingerprint.decode(), self.key.hex(), "127.0.0.1"]

    def dial(self, key: bytes | None = None) -> Any:
        """Connect as a joiner does."""
        words = self.words if key is None else [*self.words[:2], key.hex(), *self.words[3:]]
        return far._connected_to_hop(words, socketserver)

    def close(self) -> None:
        """Do as its user does at the end."""
        self.owner.kill(None)
        assert os.read(self.owner.read_fd, 1) == b""
        over = threading.Event()
        over.set()
        assert self.owner.wait(over) == (None, b"")
        os.close(self.owner.read_fd)
        os.close(self.owner.write_fd)


@pytest.fixture
def dialled(pem: str, nothing_is_left: None) -> Iterator[Dialled]:
    hop = Dialled(pem)
    yield hop
    hop.close()


class TestAtTheHop:
    def test_the_one_that_is_expected_gets_in_and_no_other(self, dialled: Dialled) -> None:
        with pytest.raises(ValueError, match="the client has another key"):
            dialled.dial(KEY)
        with dialled.dial() as conn:
            os.write(dialled.owner.write_fd, b"hello")
            assert conn.recv(5) == b"hello"
            conn.sendall(b"and back")
            assert os.read(dialled.owner.read_fd, 100) == b"and back"
            with pytest.raises(ValueError, match="refused"):
                dialled.dial()

    def test_the_key_is_good_for_nothing_else(self, dialled: Dialled) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(far, "HOP", b"join")
            with pytest.raises(ValueError, match="the client has another key"):
                dialled.dial()

    def test_nothing_is_sent_to_what_has_another_certificate(
        self, dialled: Dialled, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[bytes] = []
        monkeypatch.setattr(ssl.SSLSocket, "sendall", lambda conn, data: sent.append(data))
        dialled.words[1] = "0" * 64
        with pytest.raises(ValueError, match="another certificate"):
            dialled.dial()
        assert sent == []

    @pytest.mark.parametrize("when", ["later", "as it comes"])
    def test_one_that_stays_is_broken_off(
        self,
        pem: str,
        monkeypatch: pytest.MonkeyPatch,
        when: str,
    ) -> None:
        hop, take = Dialled(pem), far_dialled.Door.take

        def taking(door: Any, conn: Any) -> None:
            if when == "as it comes":
                hop.owner.kill(None)
            take(door, conn)

        monkeypatch.setattr(far_dialled.Door, "take", taking)
        with hop.dial():
            hop.close()
            wait_until(
                lambda: "execnet-socketserver" not in {one.name for one in threading.enumerate()}
            )

    def test_it_waits_for_no_longer_than_it_was_told(self, pem: str) -> None:
        hop = Dialled(pem, 0.01)
        assert os.read(hop.owner.read_fd, 1) == b""
        hop.close()

    def test_a_place_that_says_nothing_holds_a_joiner_up_for_seconds_only(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(far, "REACH_S", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            words = [str(silent.getsockname()[1]), "0" * 64, KEY.hex(), "127.0.0.1"]
            with pytest.raises(ValueError, match=r"127.0.0.1 port .*: timed out"):
                far._connected_to_hop(words, socketserver)
