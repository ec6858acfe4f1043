"""Bring trees to other places with the program rsync, in seconds; each run connects anew.

Arguments: see ``_sync``.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from _measure import main
from _sshd import HOST
from _sync import measure_with


class Syncer:
    """Runs of rsync, one after another."""

    def __init__(self, config: Path | None) -> None:
        self._ssh = [] if config is None else ["ssh", "-F", str(config)]

    def connect(self, count: int) -> None:
        if self._ssh:
            for _ in range(count):
                subprocess.run([*self._ssh, HOST, "true"], check=True)

    def sync(self, source: Path, dests: list[Path]) -> None:
        options = ["--archive"]
        prefix = ""
        if self._ssh:
            options.append(f"--rsh={' '.join(self._ssh)}")
            prefix = f"{HOST}:"
        for dest in dests:
            subprocess.run(["rsync", *options, f"{source}/", f"{prefix}{dest}/"], check=True)

    def cut_off(self, source: Path, dest: Path) -> None:
        dest.mkdir()
        for path in source.iterdir():  # what is there after --partial
            size = path.stat().st_size * 4 // 5
            with open(path, "rb") as file, open(dest / path.name, "wb") as other:
                shutil.copyfileobj(file, other)
                other.truncate(size)

    def close(self) -> None:
        pass


if __name__ == "__main__":
    main(measure_with(Syncer))
