"""What the tests of ends share: workers whose ends their streams hide."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from programs import HIDING, Hide
from tools import BOUND_S

from execnet import Channel, Gateway


@pytest.fixture
def hide(nothing_is_left: None) -> Iterator[Hide]:
    """Have the worker of a gateway fork a process that lives on; the channel ends the worker."""
    forked: list[int] = []

    def hide(gateway: Gateway) -> Channel:
        channel = gateway.remote_exec(HIDING)
        forked.append(channel.receive(BOUND_S)[0])
        return channel

    yield hide
    for pid in forked:
        os.kill(pid, signal.SIGKILL)
