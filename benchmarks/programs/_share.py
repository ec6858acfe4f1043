"""Which part of a program's time on the processors is that of one package's functions.

A copy of this file, named ``sitecustomize``, is imported by every interpreter that the program
starts. It has the kernel interrupt the process for the time that it runs, not for the time that
passes (``ITIMER_PROF``): that hits the thread that is running, at the kernel's clock tick, and
``faulthandler`` writes down where this thread is, at once and in C, whether it has the interpreter
lock or not; ``_share.c`` helps where that can't be told. So each part gets samples in proportion to
the time that it takes on a processor, calls of the system among them, and waiting gets none. A
sample goes to the package, or not: the innermost function decides that is not one of the standard
library.

A thread of Python that looks at the others would be wrong by far: it sees them where they give the
lock away, which is where they read, write and wait, and these are the package's functions.

It is the kernel of Linux that interrupts the running thread; elsewhere it may be any. A process
that was forked and runs no new program is not looked at.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PERIOD_S = 0.001  # of a processor's time; a kernel's tick is at most as frequent
FOLDER = "SAMPLED_INTO"  # the variable that names the folder of the samples, a file of each process
GUARD = "guard.so"
SAMPLE = "Stack (most recent call first):\n"
FUNCTION = r'(?m)^  File "(.*)", line '


def install() -> None:
    """Have this process interrupted, and write where it is into its file."""
    import ctypes
    import faulthandler
    import signal

    name = os.path.join(os.environ[FOLDER], str(os.getpid()))
    file = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    signal.signal(signal.SIGPROF, signal.SIG_IGN)  # at the end ``faulthandler`` goes back to this
    faulthandler.register(signal.SIGPROF, file=file, all_threads=False)
    ctypes.CDLL(os.path.join(os.path.dirname(__file__), GUARD)).guard()
    signal.setitimer(signal.ITIMER_PROF, PERIOD_S, PERIOD_S)


def sampled(variables: dict[str, str]) -> Path:
    """Have all that is started with ``variables`` sampled; return the folder of the samples."""
    import shutil
    import subprocess
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp(dir=os.curdir)).absolute()
    (folder / "code").mkdir()
    (folder / "samples").mkdir()
    shutil.copy(__file__, folder / "code" / "sitecustomize.py")
    source = Path(__file__).with_suffix(".c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", folder / "code" / GUARD, source]
    subprocess.run(command, check=True)
    paths = [str(folder / "code"), *filter(None, [variables.get("PYTHONPATH")])]
    variables["PYTHONPATH"] = os.pathsep.join(paths)
    variables[FOLDER] = str(folder / "samples")
    return folder / "samples"


def percent(folder: Path, package: Path) -> float:
    """Return the part of the time of all processes that was the package's."""
    inside = [_is_inside(files, str(package)) for files in _samples(folder)]
    return 100 * max(sum(inside), 1) / len(inside)  # less than a sample is not to be told from 0


def _samples(folder: Path) -> Iterator[list[str]]:
    """Yield the files of each sample's functions, the innermost first."""
    import re

    for process in folder.iterdir():
        for sample in process.read_text("ascii").split(SAMPLE)[1:]:
            yield re.findall(FUNCTION, sample)


def _is_inside(files: list[str], package: str) -> bool:
    library = _as_written(os.path.dirname(os.__file__) + os.sep)
    site = os.path.join(library, "site-packages")
    for name in files:
        if name.startswith("<"):  # <frozen ...> is the library's; source that was sent says so
            if "execnet" in name:
                return True
        elif name.startswith(_as_written(package + os.sep)):
            return True
        elif not name.startswith(library) or name.startswith(site):
            return False
    return False


def _as_written(name: str) -> str:
    """Return a name as ``faulthandler`` writes it."""
    return name.encode("ascii", "backslashreplace").decode("ascii")


if __name__ == "sitecustomize":
    install()
