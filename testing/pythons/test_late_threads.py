"""``threading`` is imported late in a worker, and knows its main thread whoever imports it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from interpreters import Interpreter
from tools import BOUND_S, MakeGateway, run, wait_until
from workers import ask

import execnet
from execnet.gateway_base import ISPYPY

pytest_plugins = ["worker_fixtures"]

MAIN_IS_BUSY = "channel.send('threading' in __import__('sys').modules)\nchannel.receive()\n"
MAIN_THREAD = """
import os, sys, threading
names = sorted(thread.name for thread in threading.enumerate())
main = threading.main_thread()
native = main.native_id in (None, os.getpid()) or not sys.platform.startswith("linux")
here = threading.current_thread() is main
channel.send((here, main.is_alive(), native, names.count("MainThread")))
"""


@pytest.fixture(name="spec")
def spec_without_a_site(python: Interpreter) -> str:
    """Return a spec of a Python that has imported nothing beyond what it needs itself."""
    if python.version < (3, 8):
        pytest.skip("threads have no native ids there")
    return f"{python.spec} -S -E"


def is_late(python: Interpreter) -> bool:
    return python.implementation == "cpython" and python.version >= (3, 10)


class TestThreading:
    def test_a_worker_imports_it_when_a_second_task_comes(
        self, makegateway: MakeGateway, spec: str, python: Interpreter
    ) -> None:
        gateway = makegateway(spec)
        busy = gateway.remote_exec(MAIN_IS_BUSY)
        assert busy.receive(BOUND_S) is not is_late(python)
        loaded = "channel.send('threading' in __import__('sys').modules)"
        assert ask(gateway, loaded) is True
        busy.send(None)

    def test_it_knows_the_main_thread_when_another_one_imports_it(
        self, makegateway: MakeGateway, spec: str
    ) -> None:
        gateway = makegateway(spec)
        busy = gateway.remote_exec(MAIN_IS_BUSY + MAIN_THREAD)
        busy.receive(BOUND_S)
        assert ask(gateway, MAIN_THREAD) == (False, True, True, 1)
        busy.send(None)
        assert busy.receive(BOUND_S) == (True, True, True, 1)

    def test_it_knows_the_main_thread_when_that_imports_it(
        self, makegateway: MakeGateway, spec: str
    ) -> None:
        gateway = makegateway(spec)
        assert ask(gateway, MAIN_THREAD) == (True, True, True, 1)

    def test_a_callback_finds_it_loaded(self, makegateway: MakeGateway, spec: str) -> None:
        gateway = makegateway(spec)
        code = "def back(item): channel.send('threading' in __import__('sys').modules)\n"
        channel = gateway.remote_exec(code + "channel.setcallback(back)\nchannel.waitclose(10)")
        channel.send(1)
        assert channel.receive(BOUND_S) is True

    def test_stacks_have_the_names_of_threads_that_it_did_not_start(
        self, makegateway: MakeGateway, spec: str
    ) -> None:
        gateway = makegateway(spec)
        busy = gateway.remote_exec(MAIN_IS_BUSY + MAIN_THREAD)
        busy.receive(BOUND_S)
        names = ["MainThread", f"execnet-receiver-{gateway.id}-worker"]

        def have_names() -> bool:
            found = re.findall(r"^thread (.*):$", gateway.dump_stacks(BOUND_S), re.MULTILINE)
            return sorted(found) == names

        wait_until(have_names)  # on PyPy, the thread that started the receiver may not have ended
        busy.send(None)
        assert busy.receive(BOUND_S) == (True, True, True, 1)


@pytest.mark.skipif(ISPYPY, reason="there gateway_base imports threading itself")
def test_a_process_waits_for_its_threads_when_another_one_imported_it() -> None:
    code = """
import sys, _thread
sys.path.insert(0, sys.argv[1])
from execnet import gateway_base
assert "threading" not in sys.modules
done = _thread.allocate_lock()
done.acquire()

def import_it():
    gateway_base._threading()
    done.release()

_thread.start_new_thread(import_it, ())
done.acquire()
import threading
assert threading.current_thread() is threading.main_thread()
assert threading.main_thread().is_alive()
end = threading.main_thread().join
threading.Thread(target=lambda: (end(), print("waited for"))).start()
"""
    folder = str(Path(execnet.__file__).parent.parent)
    result = run([sys.executable, "-S", "-c", code, folder])
    assert (result.stdout, result.stderr) == ("waited for\n", "")
