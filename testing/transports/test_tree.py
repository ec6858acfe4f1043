"""``Group.tree``: which worker is reached through which, what is refused, and what an end costs."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from chains import echoed, pid_of, posix_only
from tools import BOUND_S

import execnet
from execnet import Group, WorkerDied, XSpec
from execnet._tree.plan import parents_of

PIDS = "import os; channel.send((os.getpid(), os.getppid()))"


@pytest.mark.parametrize(
    ("count", "fanout", "parents"),
    [
        (0, 3, []),
        (3, 3, [None] * 3),
        (7, 2, [None, None, 0, 0, 1, 1, 2]),
        (4, 1, [None, 0, 1, 2]),
        (7, 4, [None] * 4 + [0, 1, 2]),  # not all behind the first
        (72, 8, [None] * 8 + [number // 8 for number in range(64)]),
    ],
)
def test_a_level_is_spread_over_the_one_above(
    count: int, fanout: int, parents: list[int | None]
) -> None:
    assert parents_of(count, fanout) == parents


def test_no_worker_leads_to_more_than_the_fanout_or_to_one_before_it() -> None:
    for fanout in range(1, 9):
        for count in range(120):
            parents = parents_of(count, fanout)
            assert len(parents) == count
            assert all(parents.count(number) <= fanout for number in [None, *range(count)])
            assert all(one is None or one < number for number, one in enumerate(parents))


@posix_only
def test_workers_are_reached_through_each_other_and_a_dead_one_costs_its_own() -> None:
    specs = ["4*popen", XSpec("popen"), "popen//id=last"]
    with Group.tree(specs, fanout=2) as group:
        assert [gateway.id for gateway in group] == ["gw0", "gw1", "gw2", "gw3", "gw4", "last"]
        found = list(group.remote_exec(PIDS).receive_each())
        pids = [pid for pid, _ in found]
        parents = [os.getpid()] * 2 + [pids[0]] * 2 + [pids[1]] * 2
        assert [parent for _, parent in found] == parents
        (deeper,) = group.tree(["popen"], fanout=1)
        assert deeper.spec.via is None
        os.kill(pids[0], signal.SIGKILL)
        for number in 2, 3:
            with pytest.raises(WorkerDied) as caught:
                group[number].newchannel().receive(BOUND_S)
            assert (caught.value.id, caught.value.hop) == (f"gw{number}", "gw0")
            assert "gw0, which it goes via, has ended: worker gw0 died, killed by SIGKILL" in str(
                caught.value
            )
        with pytest.raises(WorkerDied) as caught:
            group[0].newchannel().receive(BOUND_S)
        assert caught.value.hop == ""
        assert [echoed(group[number], 1) for number in (1, 4, 5)] == [1, 1, 1]


def test_the_last_level_knows_which_hop_of_several_has_died(group: Group) -> None:
    specs = [XSpec("popen")] * 3
    gateways = group.tree(specs, 1)
    assert [gateway.spec.via for gateway in gateways] == [None, "gw0", "gw1"]
    assert vars(specs[0]).get("via") is None
    os.kill(pid_of(gateways[0]), signal.SIGTERM)
    with pytest.raises(WorkerDied) as caught:
        gateways[2].newchannel().receive(BOUND_S)
    assert caught.value.hop == "gw0"


@pytest.mark.parametrize(
    ("spec", "fanout", "error", "text"),
    [
        ("popen//via=gw0", 2, ValueError, r"'popen//via=gw0': via= can't be, as the tree itself"),
        ("socket//installvia=gw0", 2, ValueError, "installvia= can't be"),
        ("listen=127.0.0.1:0//key=/k", 2, ValueError, "dial in are reached as they come"),
        ("popen", 0, ValueError, "fanout=0: each worker has to lead to at least one"),
        ("popen", 2.0, TypeError, "fanout=2.0 is no whole number"),
        ("popen", True, TypeError, "fanout=True is no whole number"),
    ],
)
def test_what_can_be_no_part_of_a_tree_is_refused(
    group: Group, spec: str, fanout: int, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        group.tree(["popen", "popen", spec], fanout)
    assert len(group) == 0


def test_one_string_is_refused_as_by_makegateways(group: Group) -> None:
    with pytest.raises(ValueError, match=r"write \['popen'\]"):
        group.tree("popen")


def test_one_that_fails_leaves_none(group: Group) -> None:
    with pytest.raises(execnet.BootstrapError, match="exit status 1"):
        Group.tree(["popen", "popen//python=false"], fanout=1)
    assert not group.tree([])


def test_a_loop_has_trees_too() -> None:
    async def main() -> list[str | None]:
        async with execnet.aio.Group() as group:
            gateways = await group.tree(["popen"] * 3, fanout=2)
            channel = gateways[2].remote_exec("channel.send(1)")
            assert await channel.receive(BOUND_S) == 1
            return [gateway.spec.via for gateway in gateways]

    assert asyncio.run(main()) == [None, None, "gw0"]
