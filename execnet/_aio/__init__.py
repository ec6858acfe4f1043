"""Gateways in an asyncio loop: what ``execnet.aio`` names.

The protocol is the one of ``gateway_base`` and ``gateway``, which act on bytes and never wait; here
a loop brings the bytes, in place of a thread.  Start at ``gateway.Gateway`` for how, at
``group.Group`` for what users begin with.
"""
