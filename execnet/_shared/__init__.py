"""``buffers=shared``: large items of workers on this machine go through memory that both have.

``near`` makes the memory; ``far``, which both sides run and which is shipped, uses it.
"""
