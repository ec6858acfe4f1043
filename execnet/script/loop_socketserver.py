"""Run a socket server, and another one whenever it has ended: ``loop_socketserver.py [host:port]``.

It takes the arguments of ``socketserver.py``, which has to be in the same folder.  SIGINT and
SIGTERM end both; ``quitserver.py`` ends the server, and the next one runs the current source.
This file stands alone and runs from Python 2.7 on, so its types are in comments.  Start at
``main``.
"""

import os
import signal
import subprocess
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional  # noqa: F401 - in comments

SERVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "socketserver.py")
PAUSE_S = 1.0  # so that a server that can't start does not keep the machine busy
USAGE_ERROR = 2


class Loop(object):
    """Runs one server after the other, in the main thread; ``stop`` is a signal handler."""

    def __init__(self, args):
        # type: (List[str]) -> None
        self._command = [sys.executable, SERVER] + args
        self._process = None  # type: Optional[subprocess.Popen[bytes]]
        self._stopping = False

    def run(self):
        # type: () -> int
        """Run servers until ``stop``; return the exit status of the last one."""
        while True:
            self._process = subprocess.Popen(self._command)
            if self._stopping:  # the signal came before there was a process to pass it on to
                self._process.terminate()
            status = self._process.wait()  # type: int
            if self._stopping or status == USAGE_ERROR:
                return status
            sys.stderr.write("the socket server ended with status %d, another one\n" % status)
            time.sleep(PAUSE_S)

    def stop(self, signum, frame):
        # type: (int, object) -> None
        """End the server, and start no other one."""
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            try:
                self._process.terminate()
            except OSError:
                pass  # it has just ended


def main(args=None):
    # type: (Optional[List[str]]) -> int
    """Run servers with the arguments of the command line until a signal comes."""
    args = sys.argv[1:] if args is None else args
    if "-h" in args or "--help" in args or any(arg.startswith("--new-key") for arg in args):
        return subprocess.call([sys.executable, SERVER] + args)
    loop = Loop(args)
    signal.signal(signal.SIGINT, loop.stop)
    signal.signal(signal.SIGTERM, loop.stop)
    return loop.run()


if __name__ == "__main__":
    sys.exit(main())
