"""Starts that are given up, by an error or an interrupt at any point: nothing is left of them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import is_reaped
from services import script
from tools import BOUND_S, Resources

from execnet import BootstrapError, Gateway, Group, XSpec, gateway_bootstrap
from execnet._specs import Settings
from execnet._starts import Starts
from execnet.gateway_base import get_execmodel

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a program of a Unix shell")


@pytest.fixture
def silent(tmp_path: Path) -> str:
    """A spec of a worker that never answers."""
    return f"popen//python={script(tmp_path / 'silent', 'exec sleep 1000')}"


def started(spec: str) -> Gateway:
    settings = Settings(XSpec(f"{spec}//id=x//execmodel=thread"))
    return gateway_bootstrap.start(settings, get_execmodel("thread"))


def interrupted(*args: Any) -> None:
    raise KeyboardInterrupt


class TestOne:
    def test_a_worker_that_is_ready_is_known_by_its_process(self) -> None:
        gateway = started("popen")
        gateway_bootstrap.wait_ready(gateway, None)
        assert gateway._io.worker_pid == gateway._rinfo().pid
        gateway.exit()
        gateway.join(BOUND_S)
        assert gateway._io.wait() == 0

    def test_an_interrupt_while_it_is_waited_for_leaves_nothing(
        self, silent: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = Resources.now()
        gateway = started(silent)
        monkeypatch.setattr(gateway.handshake.answered, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gateway_bootstrap.wait_ready(gateway, None)
        assert is_reaped(gateway._io.popen.pid)
        assert not gateway.hasreceiver()
        before.assert_nothing_new()

    def test_nor_does_one_that_does_not_answer_in_time(self, silent: str) -> None:
        before = Resources.now()
        gateway = started(silent)
        with pytest.raises(BootstrapError, match="no answer in time"):
            gateway_bootstrap.wait_ready(gateway, time.monotonic() + 0.2)
        assert is_reaped(gateway._io.popen.pid)
        before.assert_nothing_new()

    @pytest.mark.parametrize("error", [RuntimeError("no thread"), KeyboardInterrupt()], ids=repr)
    @pytest.mark.parametrize("when", ["before there is a gateway", "afterwards"])
    def test_nor_does_an_error_before_that(
        self, silent: str, monkeypatch: pytest.MonkeyPatch, error: BaseException, when: str
    ) -> None:
        def fails(*args: Any) -> None:
            raise error

        step = "__init__" if when.startswith("before") else "post_first_line"
        monkeypatch.setattr(Gateway, step, fails)
        before = Resources.now()
        kind = BootstrapError if isinstance(error, RuntimeError) else KeyboardInterrupt
        with pytest.raises(kind) as caught:
            started(silent)
        assert caught.value is error or "x could not be started: no thread" in str(caught.value)
        before.assert_nothing_new()

    def test_what_was_to_be_sent_to_it_is_refused(self, silent: str) -> None:
        gateway = started(silent)
        gateway_bootstrap.abandon(gateway)
        with pytest.raises(OSError, match="x died, killed"):
            gateway._send(0)

    def test_without_what_explains_a_failure_the_error_says_less(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "execnet._ends.failure", None)
        before = Resources.now()
        gateway = started("popen//python=/bin/false")
        with pytest.raises(BootstrapError, match="x could not be started") as caught:
            gateway_bootstrap.wait_ready(gateway, None)
        assert caught.value.exitcode == 1
        assert "/bin/false" in str(caught.value.command)
        before.assert_nothing_new()


class TestSeveral:
    def test_an_interrupt_leaves_none_of_them_and_frees_their_ids(
        self, group: Group, silent: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = Resources.now()
        monkeypatch.setattr(Starts, "_await_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            group.makegateways(["popen//id=a", f"{silent}//id=b", "popen//id=c//via=a"])
        before.assert_nothing_new()
        assert len(group) == 0
        monkeypatch.undo()
        assert [gateway.id for gateway in group.makegateways(["popen//id=a"])] == ["a"]

    @pytest.mark.parametrize("name", ["_forward_output", "_register"])
    def test_an_error_once_all_are_ready_leaves_none_either(
        self, group: Group, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        function, calls = getattr(group, name), []

        def fails_at_last(*args: Any) -> None:
            calls.append(args)
            if name == "_forward_output" or len(calls) == 2:
                raise MemoryError
            function(*args)

        before = Resources.now()
        monkeypatch.setattr(group, name, fails_at_last)
        with pytest.raises(MemoryError):
            group.makegateways(["popen//id=a", "popen//id=b"])
        assert list(group) == []
        before.assert_nothing_new()

    def test_a_spec_that_is_refused_keeps_no_id_of_its_call(self, group: Group) -> None:
        with pytest.raises(ValueError, match="there is a gateway 'a' already"):
            group.makegateways(["popen//id=a", "popen", "popen//id=a"])
        assert group.makegateway("popen//id=a").id == "a"

    def test_what_it_goes_via_has_to_be_there(self, group: Group) -> None:
        group.makegateway("popen//id=a")
        with pytest.raises(ValueError, match="via=b: there is no such gateway, there are: a"):
            group.makegateway("popen//via=b")
