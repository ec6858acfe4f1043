"""Start of a gateway over ssh on loopback to its first answer, in milliseconds."""

from __future__ import annotations

import sys
from pathlib import Path

from _measure import Result, Scaled, main, milliseconds, time_starts
from _sshd import HOST, sshd

import execnet


def measure(scaled: Scaled) -> Result:
    with sshd(Path.cwd()) as config:
        spec = f"ssh={HOST}//ssh_config={config}//python={sys.executable}"

        def start() -> execnet.Group:
            group = execnet.Group()
            group.makegateway(spec).remote_exec("channel.send(1)").receive()
            return group

        return milliseconds(time_starts(start, lambda group: group.terminate(5), scaled(5)))


if __name__ == "__main__":
    main(measure)
