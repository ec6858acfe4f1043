"""The target's half of RSync, which is in ``_rsync.far.target``."""

from __future__ import annotations

from ._rsync.far.target import Target, main

__all__ = ["Target", "main"]
