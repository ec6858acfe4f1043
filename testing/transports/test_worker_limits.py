"""``memory=`` and ``cpus=``: set before user code runs, inherited, told of in errors."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import pytest
from interpreters import found
from services import FakeSsh
from tools import BOUND_S, IS_THOROUGH, MakeGateway, run_python

from execnet import BootstrapError, Group, RemoteError, WorkerDied, XSpec, aio
from execnet._ends import far_limits
from execnet._specs import Settings

pytestmark = [
    pytest.mark.usefixtures("templates"),
    pytest.mark.skipif(sys.platform != "linux", reason="limits differ elsewhere"),
]
LIMITS = "memory=600M//cpus=1"
MIB = 1 << 20
# What holds in the worker and in a process that it starts; for every Python.
LOOK = """
import os
if not channel.receive():
    os._exit(7)
def look():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    limits = [line for line in open("/proc/self/limits") if line.startswith("Max address")]
    return limits[0].split()[3:5] + [status["Cpus_allowed_list"].strip()]
r, w = os.pipe()
if not os.fork():
    os.write(w, repr(look()).encode())
    os._exit(0)
os.wait()
channel.send((look(), eval(os.read(r, 1000))))
"""


def looked(gateway: Any) -> tuple[list[str], list[str]]:
    channel = gateway.remote_exec(LOOK)
    channel.send(True)
    here, inherited = channel.receive(BOUND_S)
    return here, inherited


def test_a_value_is_bytes_or_processors() -> None:
    def of(keys: str) -> tuple[int | None, int | tuple[int, ...] | None]:
        settings = Settings(XSpec(f"popen//{keys}"))
        return settings.memory_bytes, settings.cpus

    assert of("id=a") == (None, None)
    assert of("memory=100000000//cpus=2") == (100000000, 2)
    assert of("memory=512M//cpus=0,2-3") == (512 * MIB, (0, 2, 3))
    assert of("memory=2g//cpus=3-3") == (2 << 30, (3,))
    assert of("memory=3Ki//cpus=1,1") == (3 << 10, (1,))
    spec: Any = XSpec("popen")
    spec.memory, spec.cpus = 600 * MIB, 1
    assert Settings(spec).memory_bytes == 600 * MIB


@pytest.mark.parametrize(
    "key",
    ["memory=0", "memory=-1", "memory=5MB", "memory=1.5G", "memory=M", "memory=9999999T",
     "memory=99999999999999999999K", "memory=", "memory", "memory=\u0661M",
     "cpus=0", "cpus=2-1", "cpus=,1", "cpus=1-", "cpus=-1", "cpus=a", "cpus=0,9999", "cpus=\u0661"],
)  # fmt: skip
def test_nonsense_is_refused_before_a_start(key: str) -> None:
    with pytest.raises(ValueError, match=key.partition("=")[0] + "="):
        Settings(XSpec(f"popen//{key}"))


def test_a_service_that_others_use_as_well_is_not_limited(group: Group) -> None:
    for spec in "socketservice", "ssh=host//attach=work":
        for key in "memory=1G", "cpus=1":
            with pytest.raises(ValueError, match="would be for the whole service"):
                group.makegateway(f"{spec}//{key}")


WAYS = ["popen", "popen//forkserver", "popen//via=first", "ssh=host", "socket="]


@pytest.mark.parametrize("way", WAYS)
def test_the_worker_and_what_it_starts_have_them_and_its_end_tells(
    group: Group, fake_ssh: FakeSsh, request: pytest.FixtureRequest, way: str
) -> None:
    fake_ssh(FakeSsh.RUN)
    if "via" in way:
        group.makegateway("popen//id=first")
    if way == "socket=":
        way += request.getfixturevalue("serve")().address
    gateway = group.makegateway(f"{way}//{LIMITS}")
    here, inherited = looked(gateway)
    assert here == inherited
    assert here[:2] == [str(600 * MIB)] * 2
    assert int(here[2]) in os.sched_getaffinity(0)
    channel = gateway.remote_exec(LOOK)
    channel.send(False)
    with pytest.raises(WorkerDied, match="\nit had memory=600M and cpus=1\n"):
        channel.receive(BOUND_S)


OTHERS = [one for one in found() if IS_THOROUGH or str(one) in ("cpython2.7", "cpython3.6")]


@pytest.mark.parametrize("python", OTHERS, ids=str)
def test_other_pythons_have_them_and_tell_of_their_memory(group: Group, python: Any) -> None:
    gateway = group.makegateway(f"{python.spec}//memory=2G//cpus=1")
    here, inherited = looked(gateway)
    assert here == inherited
    assert here[0] == str(2 << 30)
    channel = gateway.remote_exec("b'x' * (1 << 32)")
    with pytest.raises(RemoteError, match="MemoryError\nits worker had memory=2G and cpus=1"):
        channel.waitclose(BOUND_S)


def test_workers_of_one_place_share_out_its_processors(group: Group) -> None:
    there = os.sched_getaffinity(0)
    if len(there) < 2:
        pytest.skip("needs two processors")
    group.makegateways(["popen//forkserver//cpus=1"] * 2)
    first, second = (looked(gateway)[0][2] for gateway in group)
    assert first != second
    assert {int(first), int(second)} <= there


def test_a_call_and_a_worker_of_a_loop_tell_of_the_memory() -> None:
    async def main() -> None:
        async with aio.Group() as group:
            gateway = await group.makegateway("popen//memory=600M")
            with pytest.raises(MemoryError) as caught:
                await gateway.call(bytearray, 1 << 30)
            assert "its worker had memory=600M" in str(caught.value.__cause__)
            with pytest.raises(RemoteError) as other:
                await gateway.remote_exec("1 / 0").waitclose()
            assert "memory" not in str(other.value)

    asyncio.run(main())


def test_a_limit_that_cannot_be_is_told_at_the_start(makegateway: MakeGateway) -> None:
    there = sorted(os.sched_getaffinity(0))
    for key, words in {
        "memory=10M": r"memory=10M is less than the \d+ MiB that a worker needs",
        f"cpus={len(there) + 1}": f"cpus={len(there) + 1} is more than the {len(there)} that",
        f"cpus={there[0]},4000": f"cpus={there[0]},4000 has 4000, none of the {len(there)} that",
    }.items():
        with pytest.raises(BootstrapError, match=f"could not be prepared: {words}"):
            makegateway(f"popen//{key}")
    outer = makegateway("popen//memory=600M//id=outer")
    with pytest.raises(BootstrapError, match="memory=1G is more than the 629145600 bytes"):
        makegateway(f"popen//via={outer.id}//memory=1G")


def test_a_system_without_them_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        raise ImportError(name)

    def limit(memory: int | None, cpus: int | None, load: Any = load) -> None:
        far_limits.set_limits({"memory": memory, "cpus": cpus, "turn": 0}, load)

    with pytest.raises(ValueError, match="memory= is not available on linux"):
        limit(1 << 30, None)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match="memory= is not available on darwin"):
        limit(1 << 30, None, __import__)
    monkeypatch.delattr(os, "sched_setaffinity")
    with pytest.raises(ValueError, match="cpus= is not available on darwin"):
        limit(None, 1)


WITHOUT_AFFINITY = """
import os
from execnet._ends import far_limits
there, look = os.sched_getaffinity(0), os.sched_getaffinity
del os.sched_setaffinity
find, choose = far_limits._affinity(__import__)
assert set(find(0)) == there
choose(0, [max(there)])
assert look(0) == {max(there)}
try:
    choose(0, [4000])
except ValueError as exc:
    print(exc)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this Python is one itself")
def test_a_python_without_affinity_asks_the_c_library() -> None:
    done = run_python(WITHOUT_AFFINITY)
    assert (done.stdout[:7], done.stderr) == ("cpus=: ", "")
