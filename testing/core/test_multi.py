"""Groups and multi-channels; how groups end what they started is in ``test_termination``."""

from __future__ import annotations

import atexit
import queue
import sys
import threading
from typing import Any

import pytest
from tools import BOUND_S, MakeGateway, run_python, wait_until

import execnet
from execnet import Channel, Gateway, Group, MultiChannel, RemoteError, WorkerDied, XSpec
from execnet.gateway_base import NO_ENDMARKER_WANTED, ExecModel, get_execmodel
from execnet.gateway_io import BootstrapError
from execnet.multi import safe_terminate


class TestMaking:
    def test_specs_given_at_once_are_started_in_their_order(self) -> None:
        with Group(["popen//id=one", XSpec("popen"), None, ""]) as group:
            assert [gateway.id for gateway in group] == ["one", "gw0", "gw1", "gw2"]
            pids = group.remote_exec("import os; channel.send(os.getpid())").receive_each()
            assert len(set(pids)) == 4

    def test_nothing_asked_for_takes_the_default_spec(self, group: Group) -> None:
        assert Group.defaultspec == "popen"
        group.defaultspec = "popen//id=mine"
        assert group.makegateway().id == "mine"
        group.defaultspec = "popen//id=other"
        assert group.makegateway("").id == "other"

    @pytest.mark.parametrize("spec", ["python=python3", "id=a", "nonsense", "chdir=/tmp//nice=1"])
    def test_a_spec_that_says_no_place_is_refused(self, group: Group, spec: str) -> None:
        with pytest.raises(ValueError, match=r"gateway type.*" + spec):
            group.makegateway(spec)
        with pytest.raises(ValueError, match="gateway type"):
            group.makegateways(["popen", spec])
        assert len(group) == 0

    def test_a_spec_object_gets_its_id_and_execution_model_and_is_else_unchanged(
        self, group: Group
    ) -> None:
        spec = XSpec("popen//nice=1//chdir=.")
        before = dict(vars(spec))
        gateway = group.makegateway(spec)
        assert gateway.spec.id == gateway.id == "gw0"
        assert (spec.id, spec.execmodel) in [("gw0", "thread"), (None, None)]
        unchanged = {name: vars(spec)[name] for name in before}
        assert unchanged == before
        assert str(spec) == "popen//nice=1//chdir=."

    def test_what_a_spec_says_of_id_and_model_is_kept(self, group: Group) -> None:
        spec = XSpec("popen//id=x//execmodel=main_thread_only")
        gateway = group.makegateway(spec)
        assert gateway.remote_status().execmodel == "main_thread_only"
        assert (spec.id, spec.execmodel) == ("x", "main_thread_only")

    def test_of_many_one_that_fails_leaves_none_behind(self, group: Group) -> None:
        with pytest.raises(BootstrapError):
            group.makegateways(["popen", "popen//python=/bin/false", "popen//id=third"])
        assert len(group) == 0
        assert [gateway.id for gateway in group.makegateways(["popen//id=third"])] == ["third"]

    def test_many_are_started_at_once_and_come_in_order(self, group: Group) -> None:
        gateways = group.makegateways(["popen//id=a", "popen", "popen//id=b"])
        assert [gateway.id for gateway in gateways] == ["a", "gw0", "b"]
        assert list(group) == gateways
        assert group.makegateways([]) == []


class TestIds:
    def test_they_count_from_gw0(self, group: Group) -> None:
        assert [group.makegateway().id for _ in range(3)] == ["gw0", "gw1", "gw2"]

    def test_they_are_not_used_again(self, group: Group) -> None:
        group.makegateway().exit()
        assert group.makegateway().id == "gw1"

    def test_they_can_be_had_before_the_gateway(self, group: Group) -> None:
        specs = [XSpec("popen"), XSpec("popen")]
        for spec in specs:
            group.allocate_id(spec)
        assert [spec.id for spec in specs] == ["gw0", "gw1"]
        assert group.makegateway(specs[1]).id == "gw1"
        assert group.makegateway("popen").id == "gw2"
        assert group.makegateway(specs[0]).id == "gw0"

    def test_one_that_is_taken_is_passed_over(self, group: Group) -> None:
        group.makegateway("popen//id=gw0")
        assert group.makegateway().id == "gw1"

    def test_those_that_are_asked_for_in_one_call_come_before_those_that_are_given(
        self, group: Group
    ) -> None:
        gateways = group.makegateways(["popen", "popen//id=gw0"])
        assert [gateway.id for gateway in gateways] == ["gw1", "gw0"]

    def test_one_that_is_taken_cannot_be_asked_for(self, group: Group) -> None:
        group.makegateway("popen//id=a")
        with pytest.raises(ValueError, match="'a'"):
            group.makegateway("popen//id=a")
        with pytest.raises(ValueError, match="'a'"):
            group.allocate_id(XSpec("popen//id=a"))
        with pytest.raises(ValueError, match="'b'"):
            group.makegateways(["popen//id=b", "popen//id=b"])
        assert [gateway.id for gateway in group] == ["a"]

    def test_a_spec_object_makes_one_gateway_only(self, group: Group) -> None:
        spec = XSpec("popen")
        with pytest.raises(ValueError, match="gw0"):
            group.makegateways([spec, spec])
        assert len(group) == 0

    def test_an_id_is_free_again_when_its_gateway_has_left(self, group: Group) -> None:
        group.makegateway("popen//id=a").exit()
        assert group.makegateway("popen//id=a").id == "a"

    def test_two_groups_count_each_for_itself(self, group: Group) -> None:
        group.makegateway()
        with Group(["popen"]) as other:
            assert other[0].id == group[0].id == "gw0"


class TestContainer:
    def test_it_holds_what_was_made_in_order(self, group: Group) -> None:
        assert len(group) == 0
        assert repr(group) == "<Group []>"
        one, two = group.makegateways(["popen", "popen//id=two"])
        assert len(group) == 2
        assert repr(group) == "<Group ['gw0', 'two']>"
        assert list(group) == [one, two]
        assert group[0] is group["gw0"] is group[one] is one
        assert group[1] is group[-1] is group["two"] is two
        assert all(key in group for key in (one, two, "gw0", "two", 0, 1))

    def test_what_it_does_not_have_is_a_lookup_error(self, group: Group) -> None:
        gateway = group.makegateway()
        gateway.exit()
        for key in "gw0", "", gateway:
            assert key not in group
            with pytest.raises(KeyError):
                group[key]
        assert 0 not in group
        for error in KeyError, IndexError:  # what is documented, and what lists raise
            with pytest.raises(error):
                group[0]

    def test_it_can_change_while_it_is_walked(self, group: Group) -> None:
        group.makegateways(["popen"] * 3)
        for gateway in group:
            gateway.exit()
        assert len(group) == 0

    def test_its_items_cannot_be_set_or_deleted(self, group: Group) -> None:
        group.makegateway()
        untyped: Any = group
        with pytest.raises((TypeError, AttributeError)):
            untyped[0] = None
        with pytest.raises((TypeError, AttributeError)):
            del untyped[0]
        assert len(group) == 1

    def test_gateways_of_other_kinds_can_join_and_leave(self, group: Group) -> None:
        member = Member("m")
        group._register(member)
        assert list(group) == [member]
        assert group["m"] is member
        assert member._group is group
        with pytest.raises(ValueError, match="'m'"):
            group._register(Member("m"))
        group._unregister(member)
        assert "m" not in group
        group.terminate(1)


class TestExecutionModels:
    def test_a_group_starts_with_threads(self, group: Group) -> None:
        assert group.execmodel.backend == group.remote_execmodel.backend == "thread"

    def test_both_sides_take_the_model_that_was_set(self, execmodel: ExecModel) -> None:
        with Group(execmodel=execmodel.backend) as group:
            gateway = group.makegateway()
            assert gateway.execmodel.backend == execmodel.backend
            assert gateway.remote_status().execmodel == execmodel.backend
            assert gateway.spec.execmodel == execmodel.backend

    def test_the_worker_may_have_another_one(self, execmodel: ExecModel) -> None:
        with Group() as group:
            group.set_execmodel("thread", execmodel.backend)
            gateway = group.makegateway()
            assert gateway.execmodel.backend == "thread"
            channel = gateway.remote_exec("channel.send(channel.gateway.execmodel.backend)")
            assert channel.receive(BOUND_S) == execmodel.backend
            status = gateway.remote_status()
            assert status.execmodel == group.remote_execmodel.backend == execmodel.backend

    def test_it_cannot_change_once_there_are_gateways(self, group: Group) -> None:
        gateway = group.makegateway()
        for models in [("thread",), ("main_thread_only",), ("thread", "thread")]:
            with pytest.raises(ValueError, match="gw0"):
                group.set_execmodel(*models)
        gateway.exit()
        group.set_execmodel("main_thread_only")
        assert group.makegateway().remote_status().execmodel == "main_thread_only"

    def test_one_that_does_not_exist_is_refused(self, group: Group) -> None:
        with pytest.raises(ValueError, match=r"'fibers'.*main_thread_only"):
            group.set_execmodel("fibers")
        with pytest.raises(ValueError, match="'fibers'"):
            group.set_execmodel("thread", "fibers")
        with pytest.raises(ValueError, match="'fibers'"):
            Group(execmodel="fibers")
        with pytest.raises(ValueError, match="'fibers'"):
            group.makegateway("popen//execmodel=fibers")
        assert group.execmodel.backend == group.remote_execmodel.backend == "thread"
        assert len(group) == 0


class Member:
    """A gateway of another kind: offers what a group may ask for and counts the calls."""

    def __init__(self, id: str, via: str | None = None, log: list[str] | None = None) -> None:
        self.id = id
        self.spec = XSpec(f"popen//via={via}" if via else "popen")
        self.log: list[str] = [] if log is None else log
        self._io = self
        self._group: Any = None

    def exit(self) -> None:
        self.log.append(f"exit {self.id}")

    def join(self) -> None:
        self.log.append(f"join {self.id}")

    def wait(self) -> None:
        self.log.append(f"wait {self.id}")


class TestForeignMembers:
    def test_objects_of_any_kind_in_the_list_disturb_nothing(self, group: Group) -> None:
        other = object()
        group._gateways.append(other)
        gateway = group.makegateway()
        assert repr(group) == f"<Group [{other!r}, 'gw0']>"
        assert "gw0" in group
        assert "other" not in group
        assert other in group
        assert group["gw0"] is gateway
        with pytest.raises(ValueError, match="there are gateways"):
            group.set_execmodel("thread")
        gateways = group._gateways
        group.terminate(timeout=BOUND_S)
        assert group._gateways is gateways == []
        group.set_execmodel("main_thread_only")

    def test_each_of_their_methods_is_called_once(self) -> None:
        group, members = Group(), [Member("a"), Member("b")]
        for member in members:
            group._register(member)
        group.terminate(timeout=BOUND_S)
        group.terminate(timeout=BOUND_S)
        for member in members:
            assert member.log == [f"{call} {member.id}" for call in ("exit", "join", "wait")]
        assert len(group) == 0

    def test_what_others_go_via_is_ended_after_them(self) -> None:
        group, log = Group(), list[str]()
        for member in (
            Member("master", log=log),
            Member("x", "master", log),
            Member("y", "master", log),
        ):
            group._register(member)
        group.terminate(timeout=BOUND_S)
        assert sorted(log) == sorted(
            f"{call} {id}" for call in ("exit", "join", "wait") for id in ("master", "x", "y")
        )
        assert log.index("exit master") > max(log.index("wait x"), log.index("wait y"))

    def test_a_chain_is_ended_from_its_far_end(self) -> None:
        group, log = Group(), list[str]()
        for member in Member("a", log=log), Member("b", "a", log), Member("c", "b", log):
            group._register(member)
        group.terminate(timeout=BOUND_S)
        assert [word for word in log if word.startswith("exit")] == ["exit c", "exit b", "exit a"]

    def test_one_that_left_by_itself_is_still_waited_for(self) -> None:
        group, member = Group(), Member("a")
        group._register(member)
        group._unregister(member)
        group.terminate(timeout=BOUND_S)
        assert member.log.count("join a") == member.log.count("wait a") == 1

    def test_one_that_hangs_does_not_hold_up_the_others(self) -> None:
        release = threading.Event()

        class Hanging(Member):
            def join(self) -> None:
                release.wait(BOUND_S)

            def kill(self) -> None:
                self.log.append("kill")
                release.set()

        group, hanging, member = Group(), Hanging("h"), Member("a")
        for one in hanging, member:
            group._register(one)
        group.terminate(timeout=0.1)
        assert "kill" in hanging.log
        assert member.log == ["exit a", "join a", "wait a"]


class TestTheEndOfTheProgram:
    def test_a_group_ends_its_gateways_within_a_second(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registered: list[Any] = []
        monkeypatch.setattr(atexit, "register", registered.append)
        group = Group()
        assert registered == [group._cleanup_atexit]
        timeouts: list[float] = []
        monkeypatch.setattr(group, "terminate", lambda timeout: timeouts.append(timeout))
        group._cleanup_atexit()
        assert timeouts == [1.0]

    def test_a_with_statement_ends_them(self) -> None:
        with Group() as group:
            gateway = group.makegateway()
            assert gateway.hasreceiver()
        assert not gateway.hasreceiver()
        assert len(group) == 0

    def test_it_ends_them_behind_an_error_too(self) -> None:
        made: list[Gateway] = []

        def fail() -> None:
            with Group() as group:
                made.append(group.makegateway())
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert not made[0].hasreceiver()


@pytest.fixture
def three(group: Group) -> Group:
    group.makegateways(["popen"] * 3)
    return group


class TestMultiChannel:
    def test_code_runs_in_all_at_once(self, three: Group) -> None:
        multi = three.remote_exec("channel.send(channel.receive() + 1)")
        assert isinstance(multi, MultiChannel)
        multi.send_each(41)
        assert multi.receive_each() == [42, 42, 42]
        multi.waitclose()

    def test_functions_get_their_arguments(self, three: Group) -> None:
        def add(channel, one, other):  # it is sent, so it can't name types of this module
            channel.send(one + other)

        assert three.remote_exec(add, one=1, other=2).receive_each() == [3, 3, 3]

    def test_it_is_a_container_of_its_channels_in_order(self, three: Group) -> None:
        multi = three.remote_exec("channel.receive()")
        assert len(multi) == 3
        assert [channel.gateway.id for channel in multi] == ["gw0", "gw1", "gw2"]
        assert list(multi) == [multi[0], multi[1], multi[2]]
        assert multi[1] in multi
        assert three[0].newchannel() not in multi
        multi.send_each(None)
        multi.waitclose()

    def test_receive_each_says_on_request_whose_items_they_are(self, three: Group) -> None:
        multi = three.remote_exec("channel.send(channel.id)")
        assert multi.receive_each(withchannel=True) == [(channel, 1) for channel in multi]

    def test_a_queue_gets_the_items_of_all(self, three: Group) -> None:
        multi = three.remote_exec("for i in range(5): channel.send(i)")
        items = multi.make_receive_queue(endmarker=None)
        assert multi.make_receive_queue() is items
        assert multi.make_receive_queue(endmarker=1) is items
        got: dict[Channel, list[object]] = {channel: [] for channel in multi}
        for _ in range(18):
            channel, item = items.get(timeout=BOUND_S)
            got[channel].append(item)
        assert list(got.values()) == [[0, 1, 2, 3, 4, None]] * 3

    def test_without_an_endmarker_the_queue_gets_items_only(self, three: Group) -> None:
        multi = three.remote_exec("channel.send(1)")
        items = multi.make_receive_queue(endmarker=NO_ENDMARKER_WANTED)
        assert {items.get(timeout=BOUND_S) for _ in range(3)} == {(c, 1) for c in multi}
        multi.waitclose()
        assert items.empty()

    def test_it_works_in_every_execution_model(self, execmodel: ExecModel) -> None:
        with Group(["popen"] * 2, execmodel=execmodel) as group:
            multi = group.remote_exec("for item in channel: channel.send(item)")
            multi.send_each(1)
            assert multi.receive_each() == [1, 1]
            items = multi.make_receive_queue(endmarker="end")
            multi.send_each(2)
            assert {items.get(timeout=BOUND_S) for _ in range(2)} == {(c, 2) for c in multi}
            for channel in multi:
                channel.close()
            assert {items.get(timeout=BOUND_S) for _ in range(2)} == {(c, "end") for c in multi}
            multi.waitclose()

    def test_waitclose_waits_for_all_and_raises_the_first_error(self, three: Group) -> None:
        multi = three.remote_exec(
            """
            number = channel.receive()
            if number == 0:
                channel.receive()
            else:
                raise ValueError("error of %d" % number)
            """
        )
        for number, channel in enumerate(multi):
            channel.send(number)
        caught: queue.Queue[BaseException] = queue.Queue()

        def wait() -> None:
            try:
                multi.waitclose()
            except RemoteError as exc:
                caught.put(exc)

        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: multi[1].isclosed() and multi[2].isclosed())
        thread.join(0.05)
        assert thread.is_alive()
        multi[0].send("go on")
        thread.join(BOUND_S)
        assert "error of 1" in str(caught.get(timeout=BOUND_S))

    def test_waitclose_waits_for_all_also_when_a_worker_died(self, three: Group) -> None:
        multi = three.remote_exec("import os\nif channel.receive(): os._exit(7)\nchannel.receive()")
        for number, channel in enumerate(multi):
            channel.send(number == 0)
        wait_until(multi[0].isclosed)
        caught: queue.Queue[BaseException] = queue.Queue()

        def wait() -> None:
            try:
                multi.waitclose()
            except EOFError as exc:
                caught.put(exc)

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.1)
        alive = thread.is_alive()
        for channel in list(multi)[1:]:
            channel.send("go on")
        thread.join(BOUND_S)
        error = caught.get(timeout=BOUND_S)
        assert isinstance(error, WorkerDied)
        assert error.exitcode == 7
        assert alive, "it did not wait for the others"

    def test_one_of_no_channels_does_nothing(self) -> None:
        multi = MultiChannel([])
        assert len(multi) == 0
        assert multi.receive_each() == []
        multi.send_each(1)
        multi.waitclose()

    def test_it_can_be_made_of_any_channels(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        channels = (gateway.remote_exec(f"channel.send({n})") for n in range(3))
        assert MultiChannel(channels).receive_each() == [0, 1, 2]


class TestSafeTerminate:
    @pytest.fixture
    def threads(self) -> ExecModel:
        return get_execmodel("thread")

    def test_all_pairs_run_at_once(self, threads: ExecModel) -> None:
        barrier = threading.Barrier(4)
        killed: list[int] = []
        pairs = [(lambda: barrier.wait(BOUND_S), lambda: killed.append(1)) for _ in range(4)]
        safe_terminate(threads, BOUND_S, pairs)
        assert barrier.n_waiting == 0
        assert not barrier.broken
        assert killed == []

    def test_one_that_takes_too_long_is_killed_and_no_other(self, threads: ExecModel) -> None:
        killed: list[str] = []
        release = threading.Event()

        def kill() -> None:
            killed.append("slow")
            release.set()

        pairs = [
            (lambda: None, lambda: killed.append("quick")),
            (lambda: release.wait(BOUND_S), kill),
        ]
        safe_terminate(threads, 0.05, pairs)
        assert killed == ["slow"]

    def test_it_returns_also_if_a_killfunc_blocks(self, threads: ExecModel) -> None:
        release = threading.Event()

        def block() -> None:
            release.wait(BOUND_S)

        done = threading.Event()

        def run() -> None:
            safe_terminate(threads, 0.05, [(block, block)] * 3)
            done.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert done.wait(BOUND_S)
        release.set()

    def test_without_a_timeout_it_waits(self, threads: ExecModel) -> None:
        log: list[str] = []
        release = threading.Event()

        def term() -> None:
            release.wait(BOUND_S)
            log.append("ended")

        timer = threading.Timer(0.1, release.set)
        timer.start()
        safe_terminate(threads, None, [(term, lambda: log.append("killed"))])
        timer.join()
        assert log == ["ended"]

    def test_it_runs_in_every_execution_model(self, execmodel: ExecModel) -> None:
        log: list[str] = []
        safe_terminate(execmodel, 5, [(lambda: log.append("ended"), lambda: log.append("killed"))])
        assert log == ["ended"]

    def test_nothing_to_end_is_done_at_once(self, threads: ExecModel) -> None:
        safe_terminate(threads, 0, [])


class TestDefaultGroup:
    def test_its_functions_are_those_of_the_module(self) -> None:
        assert isinstance(execnet.default_group, Group)
        assert execnet.makegateway == execnet.default_group.makegateway
        assert execnet.set_execmodel == execnet.default_group.set_execmodel
        gateway = execnet.makegateway("popen")
        try:
            assert isinstance(gateway, Gateway)
            assert gateway in execnet.default_group
        finally:
            execnet.default_group.terminate(timeout=5)
        assert gateway not in execnet.default_group


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are counted in /proc")
class TestDescriptors:
    """By programs of their own, whose limit of descriptors is their own, too."""

    HEAD = """
import os, resource, execnet
def open_ones():
    return len(os.listdir("/proc/self/fd"))
def limit(number):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
"""

    def test_many_gateways_have_two_each_and_one_for_all(self) -> None:
        result = run_python(f"""{self.HEAD}
before = open_ones()
limit(before + 2 * 40 + 6)
group = execnet.Group(["popen"] * 40)
print(open_ones() - before in (80, 81))
print(sum(group.remote_exec("channel.send(1)").receive_each()))
group.terminate(5)
print(open_ones() - before)
""")
        assert result.stdout.split() == ["True", "40", "0"]
        assert result.stderr == ""

    def test_too_few_are_told_of_before_anything_starts(self) -> None:
        result = run_python(f"""{self.HEAD}
limit(60)
try:
    execnet.Group(["popen"] * 40)
except execnet.gateway_io.BootstrapError as exc:
    print(exc)
""")
        assert "40 gateways need 86 descriptors" in result.stdout
        assert "of 60 are in use: raise the limit (ulimit -n" in result.stdout


class TestAsReceived:
    def test_items_come_with_their_channels_until_all_have_ended(self, group: Group) -> None:
        group.makegateways(["popen"] * 2)
        channels = group.remote_exec("for item in range(3): channel.send(item)")
        got = list(channels.as_received())
        assert sorted(item for _, item in got) == [0, 0, 1, 1, 2, 2]
        assert [item for channel, item in got if channel is channels[0]] == [0, 1, 2]
        assert list(channels.as_received()) == []

    def test_an_error_is_raised_after_its_items_and_the_others_go_on(self, group: Group) -> None:
        first, second = group.makegateways(["popen"] * 2)
        channels = MultiChannel(
            [first.remote_exec("channel.send(1); 1 / 0"), second.remote_exec("channel.receive()")]
        )
        items = channels.as_received()
        assert next(items) == (channels[0], 1)
        with pytest.raises(RemoteError, match="ZeroDivisionError"):
            next(items)
        channels[1].send(None)
        assert list(channels.as_received()) == []

    def test_a_worker_that_dies_is_an_error(self, group: Group) -> None:
        channels = MultiChannel([group.makegateway("popen").remote_exec("import os; os._exit(3)")])
        with pytest.raises(WorkerDied, match="exit status 3"):
            list(channels.as_received())

    def test_a_queue_without_an_endmarker_can_not_serve_it(self, group: Group) -> None:
        channels = MultiChannel([group.makegateway("popen").remote_exec("channel.receive()")])
        channels.make_receive_queue()
        with pytest.raises(OSError, match="gets no endmarker"):
            list(channels.as_received())
        channels.close()

    def test_all_are_closed_and_waited_for_within_a_time(self, group: Group) -> None:
        group.makegateways(["popen"] * 2)
        channels = group.remote_exec("channel.receive()")
        with pytest.raises(TimeoutError):
            channels.waitclose(0.01)
        channels.close("enough")
        assert all(channel.isclosed() for channel in channels)
        channels.waitclose(BOUND_S)
