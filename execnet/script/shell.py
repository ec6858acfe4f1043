"""Talk to a Python on the machine of a socket server: ``shell.py host:port``.

Each line is executed there and its output comes back, until the input ends.  It needs
``socketserver.py`` in the same folder, but no execnet.  It runs from Python 2.7 on, so its types
are in comments.  Start at ``main``.
"""

import argparse
import os
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket  # noqa: F401 - in comments
    from typing import Any, Dict, List, Optional  # noqa: F401 - in comments

CONNECT_S = 15
# A server of execnet 1 or 2 runs this itself and goes on afterwards.  There stdin and stdout are
# not the connection.
CONSOLE = """\
import code, os, socket, sys
kept = sys.stdin, sys.stdout, sys.stderr
theirs = None if globals().get("in_own_process") else globals().get("clientsock")
if theirs is not None:
    unbuffered = {"bufsize": 0} if sys.version_info[0] == 2 else {}
    sys.stdin, sys.stdout = theirs.makefile("r"), theirs.makefile("w", **unbuffered)
sys.stderr = sys.stdout
where = "%s, process %d in %s" % (socket.gethostname(), os.getpid(), os.getcwd())
space = {"__name__": "__console__"}
try:
    code.interact("Python %s\\n%s" % (sys.version.split("\\n")[0], where), local=space)
except SystemExit:
    pass
finally:
    try:
        sys.stdout.flush()
        if theirs is not None:
            theirs.shutdown(1)
    except EnvironmentError:
        pass
    sys.stdin, sys.stdout, sys.stderr = kept
"""
GOODBYE = b"\nraise SystemExit\n"  # after an empty line, which ends an open block
SERVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "socketserver.py")


def load_server():
    # type: () -> Dict[str, Any]
    """Return the names of ``socketserver.py``.

    Not by import: the standard library has a module of that name.
    """
    names = {"__name__": "execnet_socketserver", "__file__": SERVER}  # type: Dict[str, Any]
    with open(SERVER) as file:
        exec(compile(file.read(), SERVER, "exec"), names)
    return names


def talk(conn):
    # type: (socket.socket) -> None
    """Run a console on the other side, over our stdin and stdout, until it ends."""
    conn.settimeout(None)
    conn.sendall(repr(CONSOLE).encode("ascii") + b"\n")
    # The console speaks first; what came with its line would be lost at servers of execnet 1 and 2.
    data = conn.recv(65536)
    sender = threading.Thread(target=_send_input, args=(conn,))
    sender.daemon = True
    sender.start()
    while data:
        while data:
            data = data[os.write(1, data) :]
        data = conn.recv(65536)


def _send_input(conn):
    # type: (socket.socket) -> None
    try:
        # Not by sys.stdin: when the interpreter ends, it can't wait for the lock of that.
        data = os.read(0, 65536)
        while data:
            conn.sendall(data)
            data = os.read(0, 65536)
        conn.sendall(GOODBYE)
    except EnvironmentError:
        pass  # the other side was faster


def main(args=None):
    # type: (Optional[List[str]]) -> None
    """Talk to the server that the command line names."""
    parser = argparse.ArgumentParser(
        description="Talk to a Python on the machine of a socket server, line by line."
    )
    explained = "[host]:port or unix:/path; default %(default)s"
    parser.add_argument("address", nargs="?", default=":8888", help=explained)
    explained = "the server's key; default ~/.execnet/key, if there is one"
    parser.add_argument("--key", metavar="FILE", help=explained)
    explained = "the SHA-256 of its certificate, for a server with --tls and without a key"
    parser.add_argument("--fingerprint", metavar="HEX", help=explained)
    explained = "ask for no proof: whoever listens there gets what you type"
    parser.add_argument("--no-authentication", action="store_true", help=explained)
    options = parser.parse_args(args)
    if options.no_authentication and (options.key or options.fingerprint):
        parser.error("--no-authentication asks for no proof")
    address = options.address
    try:
        connect = load_server()["connect"]
        trusts = options.no_authentication
        conn = connect(address, CONNECT_S, options.key, options.fingerprint, trusts)
    except (ValueError, EnvironmentError) as exc:
        sys.exit("can't connect to %s: %s" % (address, exc))
    try:
        talk(conn)
    except EnvironmentError as exc:
        sys.exit("the connection to %s is lost: %s" % (address, exc))
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        conn.close()


if __name__ == "__main__":
    main()
