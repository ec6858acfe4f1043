"""Gateways in an asyncio loop: no thread for each of them, ``await`` for all that waits.

async with execnet.aio.Group(["popen", "ssh=host"]) as group:
    async for channel, item in group.remote_exec(function).as_received():
        print(channel.gateway.id, item)
"""

from __future__ import annotations

from ._aio.channel import Channel
from ._aio.gateway import Gateway
from ._aio.group import Group
from ._aio.multichannel import MultiChannel
from ._aio.rsync import RSync

__all__ = ["Channel", "Gateway", "Group", "MultiChannel", "RSync"]
