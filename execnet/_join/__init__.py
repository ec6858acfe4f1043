"""Workers that dial in: anything that can start a command somewhere can give a group workers.

Shipped: ``far``.  Start at ``near``.
"""
