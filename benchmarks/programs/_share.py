"""Which part of a program's time on the processors is that of one package's functions.

A copy of this file, named ``sitecustomize``, is imported by every interpreter that the program
starts. There a thread looks every millisecond at what the others are doing. The time that each of
them has run since then goes to the package, or not: the innermost function decides that is not one
of the standard library. Waiting takes no time on a processor, so it does not count.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

PERIOD_S = 0.001
# The other threads have to let this one look while they compute, not only where they wait.
SWITCH_INTERVAL_S = 1e-4
PACKAGE = "SAMPLED_PACKAGE"  # the variable that names the package's folder
FOLDER = "SAMPLED_INTO"  # and the one for the folder of the results, a file of each process


class Sampler:
    """The nanoseconds of this process: in the package, and all."""

    def __init__(self, package: str) -> None:
        self._package = package + os.sep
        self._library = os.path.dirname(os.__file__) + os.sep
        self._site = os.path.join(self._library, "site-packages")
        self._seen = {thread: self._clock(thread) for thread in sys._current_frames()}
        self.inside = 0
        self.all = 0

    def look(self, myself: int) -> None:
        for thread, frame in sys._current_frames().items():
            if thread == myself:
                continue
            now = self._clock(thread)
            run = now - self._seen.get(thread, 0)
            self._seen[thread] = now
            if run < 0:  # another thread got the number of one that ended
                run = now
            self.all += run
            if self._is_inside(frame):
                self.inside += run

    def _clock(self, thread: int) -> int:
        return time.clock_gettime_ns(time.pthread_getcpuclockid(thread))

    def _is_inside(self, frame: FrameType | None) -> bool:
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith("<"):  # <frozen ...> is the library's; source that was sent says so
                if "execnet" in name:
                    return True
            elif name.startswith(self._package):
                return True
            elif not name.startswith(self._library) or name.startswith(self._site):
                return False
            frame = frame.f_back
        return False


def sample() -> None:
    """Look at the other threads until the process ends, and keep the sums in a file."""
    import _thread

    sampler = Sampler(os.environ[PACKAGE])
    file = os.open(os.path.join(os.environ[FOLDER], str(os.getpid())), os.O_CREAT | os.O_WRONLY)
    while True:
        time.sleep(PERIOD_S)
        sampler.look(_thread.get_ident())
        os.pwrite(file, b"%20d %20d" % (sampler.inside, sampler.all), 0)


def sampled(package: Path, variables: dict[str, str]) -> Path:
    """Have all that is started with ``variables`` sampled; return the folder of the results."""
    import shutil
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp(dir=os.curdir)).absolute()
    (folder / "code").mkdir()
    (folder / "sums").mkdir()
    shutil.copy(__file__, folder / "code" / "sitecustomize.py")
    paths = [str(folder / "code"), *filter(None, [variables.get("PYTHONPATH")])]
    variables["PYTHONPATH"] = os.pathsep.join(paths)
    variables[PACKAGE], variables[FOLDER] = str(package), str(folder / "sums")
    return folder / "sums"


def percent(folder: Path) -> float:
    """Return the package's part of the time of all processes."""
    sums = [tuple(map(int, file.read_text().split())) for file in folder.iterdir()]
    inside, both = map(sum, zip(*sums, strict=True))
    return 100 * max(inside, 1) / both


def install() -> None:
    import _thread

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _thread.start_new_thread(sample, ())


if __name__ == "sitecustomize":
    install()
