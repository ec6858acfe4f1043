"""As ``forkserver_startup``: what ``popen//forkserver`` is compared with."""

from __future__ import annotations

from _measure import main
from forkserver_startup import measure

if __name__ == "__main__":
    main(measure)
