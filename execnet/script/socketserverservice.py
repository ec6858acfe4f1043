"""A socket server as a service of Windows: ``socketserverservice.py --startup=auto install``.

It needs pywin32, and ``socketserver.py`` in the same folder.  The machine's environment variable
EXECNET_SOCKETSERVER contains the arguments for that, first the address to listen at; without the
variable, this is ``:8888``.  Choose an account with few rights for the service, as whoever has the
key can run code.  Start at ``main``.
"""

import os
import shlex
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List  # noqa: F401 - in comments

try:
    import servicemanager  # type: ignore[import-untyped]
    import win32serviceutil  # type: ignore[import-untyped]

    Framework = win32serviceutil.ServiceFramework  # type: Any
    reason = ""
except ImportError as exc:  # not Windows, or not installed; this file can still be imported
    Framework = object
    reason = str(exc)

SERVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "socketserver.py")


def load_server():
    # type: () -> Dict[str, Any]
    """Return the names of ``socketserver.py``.

    Not by import: the standard library has a module of that name.
    """
    names = {"__name__": "execnet_socketserver", "__file__": SERVER}  # type: Dict[str, Any]
    with open(SERVER) as file:
        exec(compile(file.read(), SERVER, "exec"), names)
    # In a service, sys.executable is the program that hosts the service.
    names["INTERPRETER"] = os.path.join(sys.exec_prefix, "python.exe")
    return names


class SocketServerService(Framework):  # type: ignore[misc]
    """The service; Windows' service manager calls ``SvcDoRun`` and ``SvcStop``."""

    _svc_name_ = "ExecNetSocketServer"
    _svc_display_name_ = "execnet socket server"
    _svc_description_ = "Starts a Python interpreter for each client that connects."

    def __init__(self, args):
        # type: (List[str]) -> None
        Framework.__init__(self, args)
        self._stopped = threading.Event()
        self._server = None  # type: Any

    def SvcDoRun(self):
        # type: () -> None
        """Serve until ``SvcStop``."""
        names = load_server()
        words = shlex.split(os.environ.get("EXECNET_SOCKETSERVER", ":8888"), posix=False)
        self._server = names["make_server"]([word.strip('"') for word in words])
        servicemanager.LogInfoMsg("%s: %r" % (self._svc_display_name_, self._server.address))
        if not self._stopped.is_set():
            self._server.run()

    def SvcStop(self):
        # type: () -> None
        """End the server and its clients; ``SvcDoRun`` returns then."""
        import win32service  # type: ignore[import-untyped]

        self.ReportServiceStatus(win32service.SERVICE_STOP_PENDING)
        self._stopped.set()
        if self._server is not None:
            self._server.stop()


def main():
    # type: () -> None
    """Install, start, stop or remove the service, as the command line says."""
    if reason:
        sys.exit("This needs Windows and pywin32 (python -m pip install pywin32): %s" % reason)
    win32serviceutil.HandleCommandLine(SocketServerService)


if __name__ == "__main__":
    main()
