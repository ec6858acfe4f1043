"""Fixtures of several test files. Start at ``nothing_is_left``, which watches every test."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Generator, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import lazily  # noqa: F401 before execnet, which the next ones import
import pytest
import tools
from hypothesis import settings
from interpreters import found
from models import EXECMODELS, GREENLET_MODELS, need_model, pause_of, start_hub
from socketservers import Servers
from tools import FAILED, MakeGateway, Resources

from execnet import Gateway, Group, XSpec
from execnet._ends import green_poll
from execnet._folders import HOME_VARIABLE
from execnet._forkserver import templates as forkserver_templates
from execnet._transports import keys
from execnet.gateway_base import ExecModel, get_execmodel

SWITCH_INTERVAL = "EXECNET_TEST_SWITCH_INTERVAL"  # seconds between our threads' turns: 1e-6

# A slow machine is no defect, and what fails must fail everywhere and each time.
settings.register_profile("execnet", deadline=None, derandomize=True, database=None)
settings.register_profile("search", deadline=None, max_examples=5000)  # --hypothesis-profile
settings.load_profile("execnet")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):  # xdist's workers are told what is found here
        found()
    if seconds := os.environ.get(SWITCH_INTERVAL):
        sys.setswitchinterval(float(seconds))
    # Once it is loaded, eventlet warns of every fork, gevent's subprocesses included.
    config.addinivalue_line("filterwarnings", r"ignore:Using fork\(\) is a bad:DeprecationWarning")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test leaves behind no thread, no descriptor and no process that it made."""
    params = getattr(request.node, "callspec", None) and request.node.callspec.params
    for model in {"execmodel", "coordinator"} & set(params or ()):
        if params[model] in GREENLET_MODELS:
            start_hub(params[model])
    before = Resources.now()
    yield
    if not request.node.stash.get(FAILED, False):  # its traceback keeps things alive
        before.assert_nothing_new()


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every test has a folder of its own for keys, and there is no key before one is made."""
    folder = tmp_path_factory.getbasetemp() / f"execnet-home-{next(homes)}"
    # Not the fixture of that name: what a test has patched with it goes before its gateways do.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(folder))
        patch.setattr(keys, "_of_this_process", None)
        yield


homes = itertools.count()


@pytest.fixture(params=EXECMODELS)
def execmodel(request: pytest.FixtureRequest) -> ExecModel:
    """Each of the four execution models in turn."""
    need_model(request.param)
    return get_execmodel(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that use ``coordinator`` under threads and greenlets, if they have a gateway."""
    names = metafunc.fixturenames
    if "coordinator" not in names or "execmodel" in names:
        return
    if "group" not in names and "coordinator" not in signature(metafunc.function).parameters:
        return
    greenlets: list[object] = list(GREENLET_MODELS)
    for mark in metafunc.definition.iter_markers("needs_threads"):
        greenlets = [pytest.param("greenlets", marks=pytest.mark.skip(reason=mark.args[0]))]
    metafunc.parametrize("coordinator", ["thread", *greenlets], indirect=True)


@pytest.fixture
def coordinator(request: pytest.FixtureRequest, nothing_is_left: None) -> Iterator[ExecModel]:
    """The execution model, here and not in workers, of each group of a test that names none.

    A file has all of its tests run under each by ``pytest.mark.usefixtures("coordinator")``; those
    that make their groups themselves ask for the fixture. ``pytest.mark.needs_threads(reason)``
    is for what can't be done in greenlets.
    """
    model = get_execmodel(getattr(request, "param", "thread"))
    # Not the fixture of that name: what a test has patched with it goes before its gateways do.
    with pytest.MonkeyPatch.context() as patch:
        if model.backend in GREENLET_MODELS:
            need_model(model.backend)
            set_both = Group.set_execmodel

            def set_execmodel(group: Group, here: Any, remote: Any = None) -> None:
                default = here == "thread" and remote is None
                set_both(group, *((model, "thread") if default else (here, remote)))

            patch.setattr(Group, "set_execmodel", set_execmodel)
            patch.setattr(tools, "pause", pause_of(model))
            patch.setattr(green_poll, "LOOK_S", 0.05)
            patch.setattr(green_poll, "_watches", {})
        yield model


@pytest.fixture
def group(nothing_is_left: None) -> Iterator[Group]:
    """A group of its own; what is in it at the end is terminated, and has to go."""
    group = Group()
    yield group
    group.terminate(timeout=5.0)


@pytest.fixture
def makegateway(group: Group) -> MakeGateway:
    """Return a function that starts a worker in ``group``; a popen one if no spec is given."""

    def makegateway(spec: XSpec | str = "popen") -> Gateway:
        return group.makegateway(spec)

    return makegateway


@pytest.fixture
def fast_switches() -> Iterator[None]:
    """Have threads change as often as they can, so that races show."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def gateway(makegateway: MakeGateway) -> Gateway:
    """A gateway to a popen worker."""
    return makegateway()


@pytest.fixture
def gw(execmodel: ExecModel) -> Iterator[Gateway]:
    """A gateway, both ends in one of the four execution models."""
    group = Group(execmodel=execmodel)
    yield group.makegateway()
    group.terminate(timeout=5)


@pytest.fixture
def servers(tmp_path: Path, nothing_is_left: None) -> Iterator[Servers]:
    """Starts socket servers; ends them after the test."""
    folder = tmp_path / "copy"
    folder.mkdir()
    with Servers(folder) as servers:
        yield servers


@pytest.fixture
def templates(nothing_is_left: None) -> Iterator[None]:
    """End the fork servers' templates, which stay for later gateways, after a test."""
    yield
    forkserver_templates.shutdown()
