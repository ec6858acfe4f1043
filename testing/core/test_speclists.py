"""Specs that stand for several."""

from __future__ import annotations

import pytest

from execnet import Group
from execnet._speclists import expand


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("popen", ["popen"]),
        ("2*popen//nice=1", ["popen//nice=1"] * 2),
        ("ssh=node[08-10]", ["ssh=node08", "ssh=node09", "ssh=node10"]),
        ("ssh=u@a[1,3-4].x//nice=1", [f"ssh=u@a{n}.x//nice=1" for n in (1, 3, 4)]),
        ("ssh//host=r[1-2]n[1-2]", [f"ssh//host=r{r}n{n}" for r in (1, 2) for n in (1, 2)]),
        ("2*docker=c[1,2]", ["docker=c1", "docker=c2"] * 2),
        ("ssh=a[5]", ["ssh=a[5]"]),
        ("socket=[::1]:8888", ["socket=[::1]:8888"]),
        ("popen//chdir=/tmp/[1-2]//env:A=[1-2]", ["popen//chdir=/tmp/[1-2]//env:A=[1-2]"]),
        ("popen//python=2*x", ["popen//python=2*x"]),
    ],
)
def test_a_text_is_expanded(text: str, specs: list[str]) -> None:
    assert expand(text) == specs


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0*popen", "'0*popen': there is nothing to start"),
        ("ssh=a[3-1]", "there is nothing to start"),
        ("9999999999*popen", "that is 9999999999 specs"),
        ("ssh=a[1-99999][1-99999]", "that is 9999800001 specs"),
        ("4*popen//id=x", "id= names one gateway"),
        ("ssh=a[1-2]//id=x", "id= names one gateway"),
    ],
)
def test_what_can_not_be_started_is_an_error(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=r"spec ") as caught:
        Group([text])
    assert told in str(caught.value)


def test_a_group_starts_several_of_one_spec() -> None:
    with Group(["2*popen", "popen//id=last"]) as group:
        assert [gateway.id for gateway in group] == ["gw0", "gw1", "last"]


def test_a_single_gateway_is_not_made_of_several(group: Group) -> None:
    with pytest.raises(ValueError, match=r"'2\*popen' is a list of 2, makegateways\(\[...\]\)"):
        group.makegateway("2*popen")


def test_a_string_in_place_of_a_list_is_explained() -> None:
    with pytest.raises(ValueError, match=r"one string, not a list: write \['popen'\]"):
        Group("popen")
