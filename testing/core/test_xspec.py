"""Spec strings: what they mean, what they refuse, and that nobody changes them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import MakeGateway

from execnet import XSpec
from execnet.gateway_base import dumps_internal, loads_internal

KNOWN_KEYS = [
    "popen",
    "ssh",
    "ssh_config",
    "vagrant_ssh",
    "socket",
    "installvia",
    "via",
    "id",
    "python",
    "chdir",
    "nice",
    "execmodel",
    "dont_write_bytecode",
]

keys = st.text(st.characters(blacklist_characters="=/:_"), min_size=1, max_size=8).filter(
    lambda key: key != "env"
)
values = st.text(st.characters(blacklist_characters="/"), max_size=8)
specs = st.dictionaries(keys, st.none() | values, min_size=1, max_size=5)


class TestSyntax:
    def test_a_key_has_a_value_or_is_true(self) -> None:
        spec = XSpec("popen//python=python3.12//nice=5//id=")
        assert (spec.popen, spec.python, spec.nice, spec.id) == (True, "python3.12", "5", "")

    def test_a_value_may_contain_what_a_key_may_not(self) -> None:
        spec = XSpec("ssh=-p 22100 user@host//python=/usr/bin/env -S python3//chdir=a=b/c:d")
        assert spec.ssh == "-p 22100 user@host"
        assert spec.python == "/usr/bin/env -S python3"
        assert spec.chdir == "a=b/c:d"

    @pytest.mark.parametrize("key", KNOWN_KEYS)
    def test_every_known_key_is_none_or_what_was_given(self, key: str) -> None:
        assert getattr(XSpec("other"), key) is None
        assert getattr(XSpec(f"other//{key}"), key) is True
        assert getattr(XSpec(f"other//{key}=x y"), key) == "x y"

    def test_unknown_keys_are_kept(self) -> None:
        assert XSpec("popen//colour=red//loud").colour == "red"
        assert XSpec("popen//colour=red//loud").loud is True

    def test_variables_go_into_a_dict(self) -> None:
        spec = XSpec("popen//env:LANG=C//env:EMPTY=//env:PATH=/bin:/usr/bin=x")
        assert spec.env == {"LANG": "C", "EMPTY": "", "PATH": "/bin:/usr/bin=x"}
        assert XSpec("popen").env == {}

    @given(specs)
    def test_every_spec_means_what_it_was_made_of(self, parts: dict[str, str | None]) -> None:
        string = "//".join(k if value is None else f"{k}={value}" for k, value in parts.items())
        spec = XSpec(string)
        for key, value in parts.items():
            assert getattr(spec, key) == (True if value is None else value)
        assert str(spec) == spec._spec == string


class TestRefusals:
    @pytest.mark.parametrize(
        "string", ["popen//popen", "id=1//id=2", "popen//popen=x", "ssh=a//nice//nice=1"]
    )
    def test_a_key_given_twice_is_a_value_error_that_names_it(self, string: str) -> None:
        with pytest.raises(ValueError, match=r"popen|id|nice") as caught:
            XSpec(string)
        assert string in str(caught.value)

    @pytest.mark.parametrize("string", ["env:A=1//env:A=2", "popen//env:A=1//id=x//env:A=1"])
    def test_a_variable_given_twice_is_a_value_error(self, string: str) -> None:
        with pytest.raises(ValueError, match="'A'"):
            XSpec(string)

    @pytest.mark.parametrize("string", ["", "popen//", "popen////id=x", "=x", "//popen"])
    def test_a_key_without_a_name_is_a_value_error(self, string: str) -> None:
        with pytest.raises(ValueError, match="empty key"):
            XSpec(string)

    @pytest.mark.parametrize("string", ["popen//env:=1", "popen//env=A"])
    def test_a_variable_needs_a_name_and_a_value(self, string: str) -> None:
        with pytest.raises(ValueError, match="a variable is given as env:NAME=value"):
            XSpec(string)

    @pytest.mark.parametrize("string", ["_x", "_spec=1", "popen//_x=1", "popen//__dict__=1"])
    def test_a_key_with_an_underscore_in_front_is_an_attribute_error(self, string: str) -> None:
        with pytest.raises(AttributeError, match="_"):
            XSpec(string)

    @pytest.mark.parametrize("name", ["_x", "__len__", "_env", "__wrapped__"])
    def test_so_is_reading_such_a_name(self, name: str) -> None:
        spec = XSpec("popen")
        assert not hasattr(spec, name)
        with pytest.raises(AttributeError, match=name):
            getattr(spec, name)

    def test_what_is_read_was_not_added(self) -> None:
        spec = XSpec("popen")
        assert spec.python is None
        assert "python" not in vars(spec)


class TestIdentity:
    def test_specs_of_the_same_string_are_equal(self) -> None:
        assert XSpec("popen//id=1") == XSpec("popen//id=1")
        assert hash(XSpec("popen//id=1")) == hash(XSpec("popen//id=1"))
        assert len({XSpec("popen"), XSpec("popen"), XSpec("ssh=x")}) == 2

    @pytest.mark.parametrize("other", [XSpec("id=1//popen"), XSpec("popen"), None, 5, object()])
    def test_others_are_not(self, other: Any) -> None:
        spec = XSpec("popen//id=1")
        assert spec != other
        assert not spec == other  # noqa: SIM201 - the other of two methods

    def test_assigning_an_attribute_does_not_change_the_string(self) -> None:
        spec: Any = XSpec("popen")
        spec.id, spec.colour = "gw7", 3
        assert (spec.id, spec.colour, str(spec)) == ("gw7", 3, "popen")
        assert spec == XSpec("popen")

    def test_its_repr_has_its_string(self) -> None:
        assert "popen//id=1" in repr(XSpec("popen//id=1"))

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
    def test_it_can_be_copied(self, copied: Any) -> None:
        spec: Any = XSpec("popen//env:A=1")
        spec.nice = "3"
        other = copied(spec)
        assert other == spec
        assert vars(other) == vars(spec)

    def test_its_attributes_can_be_sent(self) -> None:
        spec = XSpec("popen//python=x//env:A=1//loud")
        assert loads_internal(dumps_internal(vars(spec))) == vars(spec)

    def test_a_worker_gets_its_attributes(self, makegateway: MakeGateway) -> None:
        spec = XSpec("popen//env:A=1//loud")
        channel = makegateway().remote_exec("channel.send(channel.receive())")
        channel.send(vars(spec))
        assert channel.receive(20) == vars(spec)

    def test_making_a_gateway_fills_in_id_and_execmodel_only(
        self, makegateway: MakeGateway
    ) -> None:
        spec = XSpec("popen//env:A=1//colour=red")
        before = dict(vars(spec))
        gateway = makegateway(spec)
        assert spec == XSpec("popen//env:A=1//colour=red")
        assert vars(spec) == before | {"id": gateway.id, "execmodel": "thread"}

    def test_what_the_caller_has_filled_in_stays(self, makegateway: MakeGateway) -> None:
        spec = XSpec("popen//id=mine//execmodel=main_thread_only")
        before = dict(vars(spec))
        assert makegateway(spec).id == "mine"
        assert vars(spec) == before


@pytest.mark.parametrize(
    ("string", "same"),
    [
        ("popen", True),
        ("popen//python=python3", True),
        ("popen//chdir=abc", False),
        ("ssh=host", False),
        ("socket=localhost:8888", False),
    ],
)
def test_only_popen_without_chdir_has_the_same_files(string: str, same: bool) -> None:
    assert XSpec(string)._samefilesystem() is same
