"""What a session at a prompt shows: reprs, completion, help, and what nobody asked for."""

from __future__ import annotations

import gc
import io
import os
import pydoc
import signal
import sys

import pytest
from tools import BOUND_S, run_python, wait_until

import execnet
from execnet import Group, MultiChannel, RSync


def test_a_gateway_describes_itself(group: Group) -> None:
    gateway = group.makegateway("popen//id=here//env:SECRET=x")
    pid = gateway._rinfo().pid
    text = gateway.describe()
    assert text.startswith(f"here: popen//id=here//env:SECRET=..., on this machine, pid {pid}, ")
    assert text.endswith(", live")
    printer = io.StringIO()
    printer.text = printer.write  # type: ignore[attr-defined]
    gateway._repr_pretty_(printer, False)
    assert printer.getvalue() == f"<Gateway {text}>"
    group.terminate(timeout=BOUND_S)
    assert gateway.describe().endswith(f"pid {pid}, {text.split(', ')[3]}, ended")


def test_reprs_show_what_is_in_them(group: Group) -> None:
    gateway = group.makegateway()
    channel = gateway.newchannel()
    assert repr(MultiChannel([channel])) == "<MultiChannel gw0 <Channel id=1 open>>"
    rsync = RSync("/source")
    assert repr(rsync) == "<RSync '/source' to no target>"
    rsync.add_target(gateway, "/target")
    assert repr(rsync) == "<RSync '/source' to gw0:/target>"


def test_completion_offers_public_names_only(group: Group) -> None:
    def offered(thing: object) -> set[str]:
        return {name for name in dir(thing) if not name.startswith("_")}

    assert offered(execnet) == {name for name in execnet.__all__ if not name.startswith("_")}
    internal = {"handshake", "settings", "post_first_line", "noise", "is_hurried"}
    gateway = group.makegateway()
    assert offered(gateway) & internal == set()
    assert {"remote_exec", "describe", "spec", "id"} <= offered(gateway)


def test_help_begins_with_an_example() -> None:
    text = pydoc.plain(pydoc.render_doc(execnet))
    assert 0 < text.find("remote_exec") < 700


def test_an_error_that_nobody_fetched_names_gateway_and_code(
    group: Group, capfd: pytest.CaptureFixture[str]
) -> None:
    gateway = group.makegateway("popen//id=far")
    channel = gateway.remote_exec("1 / 0")
    assert wait_until(channel.isclosed)
    del channel
    gc.collect()
    told = f"[{os.getpid()}] Warning: unhandled error of far in '1 / 0': RemoteError: Traceback"
    assert capfd.readouterr().err.startswith(told)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_while_workers_end_prints_one_line() -> None:
    code = f"""\
import os, execnet
gateway = execnet.makegateway("popen//id=slow")
end = gateway._io.poll_until
def poll_until(deadline):
    if deadline:
        os.kill(os.getpid(), {int(signal.SIGINT)})
    return end(deadline)
gateway._io.poll_until = poll_until
gateway.remote_exec("import time; channel.send(1); time.sleep(600)").receive()
"""
    result = run_python(code)
    assert result.stderr == "execnet: interrupted while these were ending: slow\n"
