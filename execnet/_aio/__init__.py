"""Gateways in an asyncio loop: the implementation of ``execnet.aio``.

The protocol is that of ``gateway_base`` and ``gateway``, which act on bytes and never wait.  Here a
loop brings the bytes instead of a thread.  Start at ``gateway.Gateway`` to see how that works, or
at ``group.Group``, which users begin with.
"""
