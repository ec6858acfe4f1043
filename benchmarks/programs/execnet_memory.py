"""The memory that ``RSync`` takes on the side that takes more, above what was in use before.

Arguments: ``file`` (one of 4 GiB; in MiB) or ``tree`` (200,000 files; in bytes a file), and
``first`` or ``changed``. Needs Linux, which tells the highest use since it was last asked.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from _measure import Result, Scaled, main

import execnet

LARGE_MIB = 4096
SMALL_FILES = 200_000

# Run on both sides: sets the highest use back to the present one, and tells it later.
FAR = """
import re
def highest():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s+(\\d+)", file.read()).group(1))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = highest()
channel.receive()
channel.send(highest() - before)
"""


def highest_kib() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def sync(gateway: execnet.Gateway, source: Path, dest: Path) -> None:
    rsync = execnet.RSync(str(source), verbose=False)
    rsync.add_target(gateway, str(dest))
    rsync.send()


def growth_kib(gateway: execnet.Gateway, source: Path, dest: Path) -> int:
    channel = gateway.remote_exec(FAR)
    Path("/proc/self/clear_refs").write_text("5")
    before = highest_kib()
    sync(gateway, source, dest)
    channel.send(None)
    return max(highest_kib() - before, channel.receive())


def make_file(folder: Path, mib: int) -> None:
    """Make a file of zeros that is none of holes, which would not be sent."""
    folder.mkdir()
    with open(folder / "file", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, mib << 20)


def change_file(folder: Path) -> None:
    with open(folder / "file", "r+b") as file:
        file.write(b"changed")


def make_tree(folder: Path, count: int) -> None:
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"directory{number}").mkdir(parents=True)
            descriptor = os.open(folder / f"directory{number}", os.O_RDONLY)
        os.close(os.open(f"file{number}", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
        if number % 1000 == 999 or number == count - 1:
            os.close(descriptor)


def measure(scaled: Scaled, what: str, step: str) -> Result:
    # On a disk: what is in memory here is not to be what limits the size of the file.
    with tempfile.TemporaryDirectory() as name, execnet.Group(["popen"]) as group:
        folder = Path(name)
        (folder / "warm").mkdir()
        sync(group[0], folder / "warm", folder / "warm-dest")
        if what == "file":
            make_file(folder / "source", scaled(LARGE_MIB))
        else:
            make_tree(folder / "source", scaled(SMALL_FILES))
        if step == "changed":
            sync(group[0], folder / "source", folder / "dest")
            change_file(folder / "source")
        kib = growth_kib(group[0], folder / "source", folder / "dest")
    if what == "file":
        return {"samples": [kib / 1024]}
    return {"samples": [kib * 1024 / scaled(SMALL_FILES)]}


if __name__ == "__main__":
    main(measure)
