"""A worker's tasks: how code is executed, and that every failure closes its channel."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import threading
import types
from typing import Any

import pytest
from tools import BOUND_S

from execnet import gateway_base
from execnet.gateway_base import WorkerGateway, get_execmodel

pytestmark = pytest.mark.core


class TaskChannel:
    """Has what a task needs of its channel, and nothing else."""

    class gateway:
        class _channelfactory:
            finished = False

    id = 1

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.closed: list[str | None] = []

    def send(self, item: Any) -> None:
        self.sent.append(item)

    def close(self, error: str | None = None) -> None:
        self.closed.append(error)


class TaskIo:
    execmodel = get_execmodel("thread")


GOOD_TASKS = {
    "a string": ("channel.send(__name__)", None, None, {}),
    "a string without a newline": ("if 1:\n  channel.send(__name__)  #", None, None, None),
    "a module": ("channel.send(__name__)", "module.py", None, {}),
    "a function": ("def f(channel): channel.send(__name__)", "m.py", "f", {}),
    "a function with arguments": ("def f(channel, a, b): channel.send(a + b)", None, "f",
                                  {"a": "__channel", "b": "exec__"}),
}  # fmt: skip
BAD_TASKS: dict[str, tuple[Any, str]] = {
    "no source that compiles": (("if", None, None, {}), "SyntaxError"),
    "a source with a null byte": (("a\0", None, None, {}), "null bytes"),
    "a failure": (("1 / 0", None, None, {}), "ZeroDivisionError"),
    "an exit": (("raise SystemExit(3)", None, None, {}), "SystemExit: 3"),
    "a generator's exit": (("raise GeneratorExit", None, None, {}), "GeneratorExit"),
    "an interrupt": (("raise KeyboardInterrupt", None, None, {}), gateway_base.INTERRUPT_TEXT),
    "a recursion": (("def f(): f()\nf()", None, None, {}), "RecursionError"),
    "an end of file": (("raise EOFError('x')", None, None, {}), "EOFError: x"),
    "a function that there is not": (("pass", None, "f", {}), "f"),
    "an argument that there is not": (("def f(channel): 0", None, "f", {"a": 1}), "TypeError"),
    "a source that is none": ((1, None, None, {}), "Error"),
    "no source": ((None, None, None, {}), "Error"),
    "a file name that is none": (("pass", [1], None, {}), "Error"),
    "arguments that are none": (("def f(channel): 0", None, "f", 7), "Error"),
    "too little": (("pass",), "Error"),
    "too much": (("pass", None, None, {}, 1, 2), "Error"),
    "nothing": (None, "Error"),
    "text": ("pass", "Error"),
}


class SlowImporter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes a module whose attributes come a moment after it is in ``sys.modules``."""

    def __init__(self) -> None:
        self.entered = threading.Event()

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self)

    def exec_module(self, module: types.ModuleType) -> None:
        self.entered.set()
        threading.Event().wait(0.2)
        vars(module)["cache"] = {}


class TestExecutingATask:
    def execute(self, task: Any) -> TaskChannel:
        channel = TaskChannel()
        worker = WorkerGateway(io=TaskIo(), id="worker", _startcount=2)
        worker.executetask((channel, task))  # type: ignore[arg-type]
        return channel

    @pytest.mark.parametrize("task", GOOD_TASKS.values(), ids=GOOD_TASKS)
    def test_it_runs_and_closes_its_channel(self, task: Any) -> None:
        channel = self.execute(task)
        assert channel.sent == ["__channelexec__"]
        assert channel.closed == [None]

    @pytest.mark.parametrize(("task", "text"), BAD_TASKS.values(), ids=BAD_TASKS)
    def test_a_failure_closes_the_channel_with_its_text(self, task: Any, text: str) -> None:
        channel = self.execute(task)
        (error,) = channel.closed
        assert error is not None
        assert text in error

    def test_another_thread_may_be_importing_linecache(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        importer = SlowImporter()
        monkeypatch.setattr(sys, "meta_path", [importer])
        monkeypatch.delitem(sys.modules, "linecache")
        importing = threading.Thread(target=importlib.import_module, args=["linecache"])
        importing.start()
        assert importer.entered.wait(BOUND_S)
        assert self.execute(("channel.send(1)", None, None, {})).closed == [None]
        importing.join()

    def test_the_end_of_the_stream_is_no_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TaskChannel.gateway._channelfactory, "finished", True)
        assert self.execute(("raise EOFError('x')", None, None, {})).closed == [None]
