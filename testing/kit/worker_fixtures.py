"""Fixtures for tests that run on every Python found: ``pytest_plugins = ["worker_fixtures"]``.

What else such tests need is in ``workers``: a plugin must not be imported by those who use it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from interpreters import DEMANDED, Interpreter, chosen, found
from tools import FAILED, wait_until
from workers import is_idle

from execnet import Gateway, Group


@pytest.fixture(scope="module", params=chosen(), ids=str)
def python(request: pytest.FixtureRequest) -> Interpreter:
    """Each Python in turn."""
    interpreter: Interpreter = request.param
    return interpreter


@pytest.fixture(scope="module")
def group_of_python(python: Interpreter) -> Iterator[Group]:
    """A group with one gateway to a worker on that Python."""
    group = Group([python.spec])
    yield group
    group.terminate(timeout=5)


@pytest.fixture
def shared(group_of_python: Group, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """The gateway that a module's tests share; each leaves no channel and no code on it."""
    gateway = group_of_python[0]
    yield gateway
    if request.node.stash.get(FAILED, False):  # the next test gets a new one
        group_of_python.terminate(timeout=1)
        group_of_python.makegateway(gateway.spec._spec)
        return
    try:
        wait_until(lambda: is_idle(gateway), timeout_s=0.5)
    except pytest.fail.Exception:
        gc.collect()  # slow, and hardly ever needed
        wait_until(lambda: is_idle(gateway))


@pytest.fixture
def fresh(python: Interpreter, group: Group) -> Gateway:
    """A gateway of its own, for tests that change or end it."""
    return group.makegateway(python.spec)


@pytest.fixture(scope="module")
def group_of_python_2() -> Iterator[Group]:
    """A group with one gateway to a worker on Python 2."""
    group = Group([find_python_2().spec])
    yield group
    group.terminate(timeout=5)


@pytest.fixture
def shared2(group_of_python_2: Group, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """The gateway to Python 2 that a module's tests share."""
    gateway = group_of_python_2[0]
    yield gateway
    if request.node.stash.get(FAILED, False):  # the next test gets a new one
        group_of_python_2.terminate(timeout=1)
        group_of_python_2.makegateway(gateway.spec._spec)


@pytest.fixture
def fresh2(group: Group) -> Gateway:
    """A gateway to Python 2 of its own."""
    return group.makegateway(find_python_2().spec)


def find_python_2() -> Interpreter:
    for interpreter in found():
        if interpreter.version[0] == 2:
            return interpreter
    pytest.skip(f"there is no Python 2 here: put its path into {DEMANDED}")
