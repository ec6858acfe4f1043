"""What is sent to an interpreter that has nothing: its size, its two parts, and no zlib."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import MakeGateway, find_python

from execnet import XSpec, gateway_base, gateway_bootstrap
from execnet._ends.handshake import Handshake
from execnet._ship import shipment
from execnet._ship.lower import cut, lower, pack
from execnet._ship.shipment import FIRST_PACKET_MAX, boot_code, shipment_for
from execnet._specs import Settings
from execnet._transports import table as transports_table

MARKER = b"\0execnet\0" + b"0123456789abcdef" + b"\n"
NO_ZLIB = """\
import sys
class NoZlib:
    def find_spec(self, name, path=None, target=None):
        if name == "zlib":
            raise ImportError("no zlib here")
sys.meta_path.insert(0, NoZlib())
"""


def lowered() -> str:
    return lower(Path(gateway_base.__file__).read_text("utf-8"))


@pytest.mark.parametrize("execmodel", ["thread", "main_thread_only", "gevent", "eventlet"])
@pytest.mark.parametrize("where", ["ssh=host", "socket=host:8888"])
@pytest.mark.parametrize("wishes", ["", f"//chdir=/{'folder/' * 20}//env:LANG=C.UTF-8//nice=19"])
def test_the_first_packet_is_at_most_14_KiB(execmodel: str, wishes: str, where: str) -> None:
    spec = XSpec(f"{where}//id=gateway1234//execmodel={execmodel}{wishes}")
    line = gateway_bootstrap.first_line(Settings(spec), MARKER)
    assert len(line) <= FIRST_PACKET_MAX == 14336
    assert line.count(b"\n") == 1


def test_the_whole_bootstrap_is_one_write(
    makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the hello; the rest of the module comes behind it."""
    before_hello: list[bytes] = []
    on_hello = gateway_bootstrap.Gateway._on_hello
    written: list[bytes] = []

    class CountingIO(gateway_bootstrap_io()):  # type: ignore[misc]
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            self.write_some, self.write_pieces = partial(self._note, self.write_some), None

        def _note(self, write: Callable[[bytes], int], data: bytes) -> int:
            written.append(data)
            return write(data)

    def hello(gateway: gateway_bootstrap.Gateway, info: dict[str, object]) -> None:
        before_hello.extend(written)
        on_hello(gateway, info)

    monkeypatch.setattr("execnet.gateway_io.Popen2IOMaster", CountingIO)
    monkeypatch.setattr(gateway_bootstrap.Gateway, "_on_hello", hello)
    makegateway(f"popen//python={sys.executable}//env:A=b//nice=1")
    assert len(before_hello) == 1
    assert len(before_hello[0]) <= FIRST_PACKET_MAX


def gateway_bootstrap_io() -> type:
    from execnet.gateway_io import Popen2IOMaster

    return Popen2IOMaster


def test_what_is_sent_is_made_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = XSpec("ssh=host//id=gw0//execmodel=thread")
    line = gateway_bootstrap.first_line(Settings(spec), MARKER)
    monkeypatch.setattr("execnet._ship.shipment.Shipment", None)
    assert gateway_bootstrap.first_line(Settings(spec), MARKER) == line


class TestCut:
    @pytest.mark.parametrize("line", [shipment.CUT_BEFORE_GREENLETS, shipment.CUT])
    def test_every_line_is_in_one_of_the_parts_at_its_place(self, line: str) -> None:
        source, text = lowered(), Path(gateway_base.__file__).read_text("utf-8")
        first, rest = cut(source, text, line)
        assert first + rest[first.count("\n") :] == source
        assert rest[: first.count("\n")].strip("\n") == ""

    @pytest.mark.parametrize("line", [shipment.CUT_BEFORE_GREENLETS, shipment.CUT])
    def test_both_parts_compile(self, line: str) -> None:
        for part in cut(lowered(), Path(gateway_base.__file__).read_text("utf-8"), line):
            ast.parse(part)

    def test_a_line_that_is_not_there_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="not enough values"):
            cut("a = 1", "a = 1", "# there is no such line")


@given(st.text(st.characters(max_codepoint=127), max_size=300))
def test_packed_source_is_printable_and_becomes_the_source_again(source: str) -> None:
    packed = pack(source)
    assert packed.isprintable()
    assert not set("'\"\\") & set(packed)
    assert unpacked(packed) == source.encode()


def unpacked(packed: str) -> object:
    """Run the code that a worker boots with up to where it has its source."""
    code = boot_code({"execmodel": "thread", "marker": MARKER}).partition("\nboot(")[0]
    head, behind, _ = code.partition(" exec(compile(s,f")
    assert behind
    namespace: dict[str, Any] = {}
    exec(head + " del sys.modules[m.__name__]\n return s", namespace)
    return namespace["boot"](packed, "", "file", {})


def test_an_interpreter_without_zlib_is_sent_the_source_as_it_is(
    makegateway: MakeGateway, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_ZLIB)
    program = tmp_path / "python-without-zlib"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    gateway = makegateway(f"popen//python={program}")
    channel = gateway.remote_exec("import sys; channel.send('zlib' in sys.modules)")
    assert channel.receive() is False
    channel = gateway.remote_exec("channel.send(channel.receive())")
    channel.send([1.5, {"a": b"b"}])
    assert channel.receive() == [1.5, {"a": b"b"}]


class TestCompiled:
    @pytest.fixture
    def compiled(self, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
        """Of each worker that is started, whether its rest was sent compiled."""
        found: list[bool] = []
        choose = Handshake.take_rest

        def take_rest(*args: Any) -> bytes | None:
            rest = choose(*args)
            assert rest is not None
            found.append(rest[:1] == b"m")
            return rest

        monkeypatch.setattr(Handshake, "take_rest", take_rest)
        return found

    def test_a_worker_on_the_same_python_compiles_no_rest(
        self, makegateway: MakeGateway, compiled: list[bool]
    ) -> None:
        gateway = makegateway(f"popen//python={sys.executable}")
        assert compiled == [True]
        channel = gateway.remote_exec("channel.send([channel.receive()])")
        channel.send({"a": 1.5})
        assert channel.receive() == [{"a": 1.5}]
        with pytest.raises(channel.RemoteError) as raised:
            gateway.remote_exec("def +").waitclose()
        lines = Path(gateway_base.__file__).read_text("utf-8").splitlines()
        numbers = re.findall(r"gateway_base.py.*, line (\d+), in _execute\n", str(raised.value))
        assert "compile(" in lines[int(numbers[0]) - 1]

    def test_another_python_compiles_it(
        self, makegateway: MakeGateway, compiled: list[bool]
    ) -> None:
        gateway = makegateway(f"popen//python={find_python('3.13')}")
        assert gateway.remote_exec("channel.send(1)").receive() == 1
        assert compiled == [False]

    def test_one_elsewhere_compiles_it(
        self, makegateway: MakeGateway, compiled: list[bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transports_table, "address_of", lambda *args: "far")
        gateway = makegateway(f"popen//python={sys.executable}")
        assert gateway.remote_exec("channel.send(1)").receive() == 1
        assert compiled == [False]

    def test_one_behind_a_server_that_was_started_here_compiles_no_rest(
        self, makegateway: MakeGateway, compiled: list[bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        starter = makegateway(f"popen//id=starter//python={sys.executable}")
        gateway = makegateway("socket//installvia=starter")
        assert gateway.remoteaddress is not None
        assert gateway.remote_exec("channel.send(1)").receive() == 1
        assert compiled == [True, True]
        monkeypatch.setattr(starter.endpoint, "remoteaddress", "far")
        assert not gateway.endpoint.is_near


def test_a_worker_that_sends_source_is_refused(makegateway: MakeGateway) -> None:
    gateway = makegateway()
    channel = gateway.remote_exec("channel.gateway._send(10, 0, b'print(1)')")
    with pytest.raises(EOFError, match="may not send SOURCE"):
        channel.waitclose()


def test_a_shipment_with_greenlets_has_them_in_its_first_part() -> None:
    thread, gevent = shipment_for("thread"), shipment_for("gevent")
    assert "class GeventExecModel" in gevent.plain_line.decode()
    assert "class GeventExecModel" not in thread.plain_line.decode()
    assert b"class GeventExecModel" in thread.plain_rest
    assert os.path.isabs(gateway_base.__file__)


@pytest.mark.parametrize("execmodel", ["thread", "gevent"])
def test_its_two_parts_are_the_whole_module(execmodel: str) -> None:
    source, features = lowered(), shipment_for(execmodel).whole()
    # What makes it a worker, and greenlets, are in a line that is empty otherwise.
    features = re.sub(r"^exec\(compile\(.*", "", features, count=1, flags=re.M)
    assert features[: len(source)] == source
    assert features[len(source) :].startswith("\n_sent_parts.update(")
