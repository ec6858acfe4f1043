"""Bring trees to other places with ``RSync``, in seconds; gateways that run are not timed.

Arguments: see ``_sync``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from _measure import main
from _sshd import HOST
from _sync import measure_with

import execnet


class Syncer:
    """``RSync`` to gateways that stay."""

    def __init__(self, config: Path | None) -> None:
        self._spec = "popen"
        if config is not None:
            self._spec = f"ssh={HOST}//ssh_config={config}//python={sys.executable}"
        self._group = execnet.Group()

    def connect(self, count: int) -> None:
        for _ in range(count):
            gateway = self._group.makegateway(self._spec)
            gateway.remote_exec("channel.send(1)").receive()

    def sync(self, source: Path, dests: list[Path]) -> None:
        rsync = execnet.RSync(str(source), verbose=False)
        for gateway, dest in zip(self._group, dests, strict=True):
            rsync.add_target(gateway, str(dest))
        rsync.send()

    def close(self) -> None:
        self._group.terminate(10)


if __name__ == "__main__":
    main(measure_with(Syncer))
