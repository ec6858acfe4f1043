"""Starts workers anew that died: ``Group(respawn=N)``."""
