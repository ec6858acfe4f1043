"""Gateways that go via each other."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from tools import BOUND_S
from workers import ECHO

from execnet import Gateway, Group

MIB = 1 << 20
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes of POSIX")


def make_chain(group: Group, *options: str) -> list[Gateway]:
    """Return gateways each of which goes via the one before; options are ends of their specs."""
    gateways: list[Gateway] = []
    for option in options:
        via = f"//via={gateways[-1].id}" if gateways else ""
        gateways.append(group.makegateway(f"popen{via}{option}"))
    return gateways


def echoed(gateway: Gateway, item: Any) -> Any:
    channel = gateway.remote_exec(ECHO)
    channel.reconfigure(py2str_as_py3str=False)
    channel.send(item)
    return channel.receive(BOUND_S)


def pid_of(gateway: Gateway) -> int:
    pid: int = gateway._rinfo().pid
    return pid
