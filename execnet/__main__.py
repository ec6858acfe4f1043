"""``python -m execnet``: the command line, which is in ``_cli``."""

from __future__ import annotations

import sys

from ._cli import main

if __name__ == "__main__":
    sys.exit(main())
