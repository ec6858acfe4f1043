"""For PyInstaller, which finds this by the entry point ``pyinstaller40``: where the hook is."""

from __future__ import annotations

import os


def hook_dirs() -> list[str]:
    """Return the folder of ``hook-execnet.py``."""
    return [os.path.dirname(os.path.abspath(__file__))]
