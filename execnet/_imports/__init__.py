"""Imports that travel: modules of the coordinator that workers import as source.

``library`` finds and reads the source, ``near`` sends it, ``far_finder`` imports it.  Shipped:
``far_*``.
"""
