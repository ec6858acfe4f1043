"""The parts of ``execnet.rsync``; ``far`` is shipped.

A run of ``RSync.send`` is in ``push``, of ``RSync.pull`` in ``pull``, between two workers in
``relay`` and ``direct``.
"""
