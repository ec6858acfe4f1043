"""What is imported for one gateway: in the coordinator, and in a worker before it answers.

Each import costs time at every start. Of ours the lists are exact. Of the standard library they
are the most that there may be: what its modules import themselves differs from version to version.
What an interpreter has loaded anyway, with the ``.pth`` files of its environment, is not counted.
"""

from __future__ import annotations

import os
import platform
import sys

import lazily
import pytest
from tools import run_python

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(
        platform.python_implementation() != "CPython", reason="the lists are CPython's"
    ),
    pytest.mark.skipif(lazily.ASKED in os.environ, reason="lazy imports load less"),
]

# What ``threading``, ``weakref``, ``struct`` and ``_pickle`` are and bring along.
THREADS = {
    *("_collections", "_functools", "_operator", "_weakref", "_weakrefset", "collections"),
    *("functools", "itertools", "keyword", "operator", "reprlib", "threading", "types"),
    *("warnings", "_types", "_warnings", "weakref", "_py_warnings", "_contextvars"),
}
ITEMS = {"_compat_pickle", "_pickle", "_struct", "copyreg", "struct"}
IMPORTS = {"importlib", "importlib._bootstrap", "importlib._bootstrap_external"}
SIGNALS = {"enum", "signal"}
# A worker does without ``threading`` and ``_pickle`` until it has to; ``_functools`` is in C.
WORKER = {"_collections", "_functools", "_struct", "_weakref", "_weakrefset", "itertools", "struct"}
WORKER |= {"__future__", "_queue", "_types", "types", "faulthandler", "io", "select", "weakref"}
if sys.platform == "win32":
    WORKER |= {"msvcrt", "nt"}

# ``subprocess`` and what it brings along; some versions' ``locale`` has ``re``.
PROCESSES = {
    *("_locale", "_opcode", "_posixsubprocess", "_sre", "_winapi", "atexit", "collections.abc"),
    *("_math_integer", "contextlib", "errno", "fcntl", "locale", "math", "math.integer", "msvcrt"),
    *("re", "re._casefix"),
    *("re._compiler", "re._constants", "re._parser", "selectors", "subprocess"),
    *("sre_compile", "sre_constants", "sre_parse"),  # what ``re`` consists of before 3.11
}
COORDINATOR = WORKER | THREADS | ITEMS | IMPORTS | SIGNALS | PROCESSES
# Finding what an earlier program has kept, and a command to be split into words.
SHIPPING = {"importlib._abc", "importlib.util", "shlex"}
# Lowering the source that is sent, where nothing was kept.
LOWERING = {"_ast", "_ast_unparse", "ast", "zlib"}

OURS = {
    *("execnet._calls", "execnet._calls.calling", "execnet._join", "execnet._join.listening"),
    *(
        "execnet",
        "execnet._clock",
        "execnet._endpoint",
        "execnet._errors",
        "execnet._inside",
        "execnet._starts",
    ),
    *("execnet._log", "execnet._multichannel", "execnet._specs"),
    *(
        "execnet._ends",
        "execnet._ends.admission",
        "execnet._ends.death",
        "execnet._ends.fork",
        "execnet._ends.handshake",
        "execnet._ends.last_words",
    ),
    *("execnet._features", "execnet._features.codec", "execnet._features.direct"),
    "execnet._features.queues",
    *("execnet._ends.poll", "execnet._ends.terminate", "execnet._ship", "execnet._ship.source"),
    *("execnet._transports", "execnet._transports.logins", "execnet._transports.sharing"),
    *("execnet._transports.table", "execnet.gateway", "execnet.gateway_base"),
    *("execnet.gateway_bootstrap", "execnet.gateway_io", "execnet.multi", "execnet.xspec"),
}
FAR = ("", ".gateway_base", "._features", "._features.direct", "._features.running")
OURS_IDLE = {"execnet._ends.watch"}  # once a gateway had nothing to read for a while
OURS_SHIPPING = {
    *("execnet._ends.checked", "execnet._ends.colliding", "execnet._ends.scan"),
    *("execnet._ship.parts", "execnet._ship.shipment"),
}
OURS_LOWERING = {"execnet._ship.lower", "execnet._ship.syntax"}

ASK = """
import sys
import execnet
gateway = execnet.makegateway({spec!r})
channel = gateway.remote_exec("import sys; channel.send(list(sys.modules))")
far = channel.receive(30)
print(*sys.modules)
print(*far)
gateway.exit()
execnet.default_group.terminate(10)
"""
POPEN = "popen"
BY_SOURCE = f"popen//python={sys.executable}"

Loaded = tuple[set[str], set[str]]


def bare() -> set[str]:
    """Return what an interpreter has loaded that was told to do nothing."""
    return set(run_python("import sys; print(*sys.modules)").stdout.split())


def loaded_for(spec: str, **variables: str) -> Loaded:
    """Return what a coordinator and a worker have loaded beyond a bare interpreter."""
    result = run_python(ASK.format(spec=spec), **variables)
    assert result.stderr == ""
    here, far = (set(line.split()) for line in result.stdout.splitlines())
    return here - bare(), far - bare()


@pytest.fixture(scope="module")
def popen() -> Loaded:
    return loaded_for(POPEN)


@pytest.fixture(scope="module")
def by_source(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """In a program that finds nothing kept, and keeps nothing."""
    folder = str(tmp_path_factory.mktemp("bytecode"))
    return loaded_for(BY_SOURCE, PYTHONPYCACHEPREFIX=folder, PYTHONDONTWRITEBYTECODE="1")


@pytest.fixture(scope="module")
def by_kept_source(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """In the second program of a machine."""
    folder = str(tmp_path_factory.mktemp("bytecode"))
    loaded_for(BY_SOURCE, PYTHONPYCACHEPREFIX=folder)
    return loaded_for(BY_SOURCE, PYTHONPYCACHEPREFIX=folder)


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.lstrip("_").startswith("execnet")}


def test_a_coordinator_loads_these_of_ours_for_one_popen_gateway(popen: Loaded) -> None:
    assert ours(popen[0]) - OURS_IDLE == OURS


def test_a_coordinator_loads_no_more_of_the_standard_library(popen: Loaded) -> None:
    assert popen[0] - OURS - OURS_IDLE - COORDINATOR == set()


def test_a_worker_loads_the_core_what_it_uses_and_what_tells_of_crashes(popen: Loaded) -> None:
    assert ours(popen[1]) == {*(f"execnet{name}" for name in FAR), "execnet._features.start"}


def test_a_worker_loads_no_more_of_the_standard_library(popen: Loaded) -> None:
    assert popen[1] - ours(popen[1]) - WORKER == set()


def test_only_a_coordinator_that_sends_its_source_loads_what_lowers_it(by_source: Loaded) -> None:
    assert ours(by_source[0]) - OURS_IDLE == OURS | OURS_SHIPPING | OURS_LOWERING
    others = by_source[0] - ours(by_source[0]) - COORDINATOR
    assert others - SHIPPING - LOWERING == set()


def test_one_that_has_it_kept_loads_nothing_that_lowers_it(by_kept_source: Loaded) -> None:
    assert ours(by_kept_source[0]) - OURS_IDLE == OURS | OURS_SHIPPING
    others = by_kept_source[0] - ours(by_kept_source[0]) - COORDINATOR
    assert others - SHIPPING == set()


def test_a_worker_that_is_sent_its_source_loads_no_more(by_source: Loaded) -> None:
    sent = {f"_execnet{name}" for name in FAR}
    assert ours(by_source[1]) == sent
    assert by_source[1] - sent - WORKER - {"zlib"} == set()


@pytest.mark.parametrize(
    "name",
    [
        *("_socket", "asyncio", "hashlib", "inspect", "json", "linecache", "logging", "pickle"),
        *("queue", "random", "socket", "ssl", "subprocess", "tempfile", "traceback", "typing"),
        *("re", "tokenize", "ast", "threading", "functools", "collections", "_pickle", "signal"),
    ],
)
def test_what_takes_long_is_not_on_the_list_of_a_worker(name: str) -> None:
    assert name not in WORKER
