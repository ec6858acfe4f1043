"""Modules that are sent before a worker asks for them, as it is about to call their functions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from import_projects import Project, Worker
from tools import BOUND_S, find_python

from execnet import Group, aio


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return Project(folder)


@pytest.fixture(params=["2.7", "3.6", "3.13"])
def worker(request: pytest.FixtureRequest, group: Group, tmp_path: Path) -> Worker:
    """A worker in an empty folder, on a Python that shares nothing with this one."""
    python = find_python(request.param)
    return Worker(group.makegateway(f"popen//python={python}//chdir={tmp_path / 'there'}"))


def test_the_modules_of_a_called_function_come_without_a_request(
    worker: Worker, project: Project
) -> None:
    project.write(
        ahead__init="",
        ahead__work="from .parts import one\nimport other\ndef two(): return 2 * one.VALUE",
        ahead__parts__init="",
        ahead__parts__one="VALUE = 1",
        other="VALUE = 1",
    )
    gateway = worker.gateway
    gateway.forward_imports(["ahead", "other"], deny=["ahead.secret"])
    assert gateway.call("ahead.work:two") == 2
    assert gateway.submit("ahead.work:two").result(BOUND_S) == 2
    assert worker.requests == 0
    project.write(ahead__secret="def f(): pass")
    with pytest.raises(ModuleNotFoundError):  # neither by request nor without one
        gateway.call("ahead.secret:f")


def test_an_executor_sends_the_modules_of_a_function_before_its_first_call(
    group: Group, worker: Worker, project: Project
) -> None:
    project.write(
        first__init="def one(number): return number\n",
        later__init="import other\ndef two(number): return 2 * number\n",
        other="",
    )
    with group.executor(imports=["first", "later", "other"]) as executor:
        assert executor.submit("first:one", 1).result(BOUND_S) == 1
        assert list(executor.map("later:two", range(4), chunksize=2)) == [0, 2, 4, 6]
    assert worker.requests == 0


def test_so_do_calls_and_map_in_a_loop(project: Project, tmp_path: Path) -> None:
    project.write(
        first__init="def one(number): return number\n",
        later__init="import other\ndef two(number): return 2 * number\n",
        other="",
    )

    async def main() -> int:
        async with aio.Group([f"popen//chdir={tmp_path / 'there'}"]) as group:
            worker = Worker(group[0])
            await group[0].forward_imports(["first", "later", "other"])
            assert await group[0].call("first:one", 1) == 1
            async with group.executor() as executor:
                assert [n async for n in executor.map("later:two", range(3))] == [0, 2, 4]
            return worker.requests

    assert asyncio.run(main()) == 0
