"""Gateways that outlive their connections: ``resume=SECONDS``.  Shipped: ``far_*``.

Start at ``far_link``.
"""
