"""Attributes of what each item passes through are where CPython reads them quickest."""

from __future__ import annotations

import inspect
import platform
import sys

import pytest
from tools import run_python

# CPython since 3.11 keeps up to 30 attributes in the object itself; nothing asks for their dict.
pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(
        sys.version_info < (3, 11) or platform.python_implementation() != "CPython",
        reason="other Pythons keep attributes in another way",
    ),
]


def slow_ones(channel):  # type: ignore[no-untyped-def]
    """Return the types of the objects that an item passes through and whose dict was made."""
    import gc

    gateway = channel.gateway
    objects = [channel, gateway, gateway._channelfactory, gateway._writer, gateway._decoder]
    return [
        type(one).__name__
        for one in objects
        if any(type(held) is dict and held == vars(one) for held in gc.get_referents(one))
    ]


# In a process of its own, as names of attributes that other tests set count, too.
PROGRAM = """
import execnet
gateway = execnet.makegateway()
channel = gateway.remote_exec(SOURCE + "channel.receive(); channel.send(slow_ones(channel))")
channel.send_bytes(b"x" * 100000)
execnet.makegateway("popen//via=" + gateway.id)
print(channel.receive(), slow_ones(channel), len(vars(gateway)) <= 30)
"""


def test_no_dict_is_made_of_what_an_item_passes_through() -> None:
    source = inspect.getsource(slow_ones) + "\n"
    result = run_python(f"SOURCE = {source!r}\n{source}{PROGRAM}")
    # Since 3.14 there is less room: a gateway has more attributes than its class itself names.
    near = ["Gateway"] if sys.version_info >= (3, 14) else []
    assert (result.stdout, result.stderr) == (f"[] {near} True\n", "")
