"""Start of a mitogen context over ssh on loopback to its first answer, in milliseconds."""

from __future__ import annotations

import os
from pathlib import Path

from _measure import Result, Scaled, main, milliseconds, time_starts
from _mitogen import Router
from _sshd import HOST, sshd


def measure(scaled: Scaled) -> Result:
    with sshd(Path.cwd()) as config:

        def start() -> Router:
            router = Router()
            router.start_by_ssh(HOST, config).call(os.getpid)
            return router

        return milliseconds(time_starts(start, Router.stop, scaled(5)))


if __name__ == "__main__":
    main(measure)
