"""Bring trees to other places with ``RSync``, in seconds; gateways that run are not timed.

Arguments: see ``_sync``.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from time import sleep

from _measure import main
from _sshd import HOST
from _sync import measure_with

import execnet

UNCUT_MAX = 8 << 20  # bytes that may have arrived whole before they are cut off


class CutOff(Exception):
    """Enough has come."""


class Syncer:
    """``RSync`` to gateways that stay."""

    def __init__(self, config: Path | None) -> None:
        self._spec = "popen"
        self._options: dict[str, bool] = {}
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
            rsync.add_target(gateway, str(dest), **self._options)
        rsync.send()

    def cut_off(self, source: Path, dest: Path) -> None:
        self._options = {"partial": True}

        def cut(total: int, done: int, current: str) -> None:
            if done >= total * 0.8:
                raise CutOff

        rsync = execnet.RSync(str(source), verbose=False, progress=cut)
        rsync.add_target(self._group[0], str(dest), partial=True)
        with suppress(CutOff):
            rsync.send()
        if sum(path.stat().st_size for path in source.iterdir()) < UNCUT_MAX:
            return  # to warm up: it has arrived whole
        for _ in range(1000):  # until the worker has let go of it
            if list(dest.glob(".execnet-rsync-*-0-*")):
                return
            sleep(0.01)
        raise ValueError(f"nothing was left of what was cut off, only {os.listdir(dest)}")

    def close(self) -> None:
        self._group.terminate(10)


if __name__ == "__main__":
    main(measure_with(Syncer))
