"""What tests do with workers on other Pythons; the fixtures are in ``worker_fixtures``.

The code that is sent keeps to what Python 2.7 and today's Python both accept.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from tools import BOUND_S

from execnet import Channel, Gateway, ProtocolError

# The worker sends back what it gets, until the channel is closed.
ECHO = "for item in channel: channel.send(item)"
GETPID = "import os; channel.send(os.getpid())"


def ask(gateway: Gateway, code: Any, *items: Any, **kwargs: Any) -> Any:
    """Execute code, send it items, return the one that it sends."""
    channel = gateway.remote_exec(code, **kwargs)
    for item in items:
        channel.send(item)
    answer = channel.receive(BOUND_S)
    channel.waitclose(BOUND_S)
    return answer


def plain_channel(gateway: Gateway, code: str) -> Channel:
    """Execute code with a channel over which no string is converted."""
    channel = gateway.remote_exec("channel.receive()\n" + code)
    channel.reconfigure(py2str_as_py3str=False, py3str_as_py2str=False)
    channel.send("go")
    return channel


def is_idle(gateway: Gateway) -> bool:
    """Whether there is neither a channel nor code that runs, on both sides."""
    status = gateway.remote_status()
    ours = gateway._channelfactory
    return not (status.numchannels or status.numexecuting or ours.channels() or ours._callbacks)


# ---------------------------------------------------------------- that mean harm


def frame(code: int, channel_id: int, data: bytes) -> bytes:
    """Return the bytes of a frame."""
    return struct.pack("!bii", code, channel_id, len(data)) + data


def assert_ends(gateway: Gateway, data: bytes, words: str) -> None:
    """Have a worker put bytes on its stream; fail unless that ends its gateway, with a reason."""
    waiting = gateway.newchannel()
    gateway.remote_exec("channel.gateway._io.write(channel.receive())").send(data)
    with pytest.raises(ProtocolError, match=words):
        waiting.receive(BOUND_S)
    gateway.join(BOUND_S)
